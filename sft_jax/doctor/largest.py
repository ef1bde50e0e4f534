"""Finds the largest batch that fits, with few compilations."""

from collections.abc import Callable
from typing import NamedTuple

# Compilations at most, the first one included.
MOST = 6
# A batch that fits is good enough if it is this part of the largest, as far as can be told.
CLOSE = 0.9


class Need(NamedTuple):
    """The bytes that a batch size needs on each device; `growing` of them are about proportional to it."""

    bytes: int
    growing: int


class Found(NamedTuple):
    """The result of a search.

    Attributes:
      batch: the largest batch size that was compiled and fits; None if none did.
      too_large: the smallest that was compiled and does not fit; None if none was.
      tried: what the batch sizes that were compiled need, in order; None where the compiler refused.
    """

    batch: int | None
    too_large: int | None
    tried: dict[int, Need | None]


def largest_batch(
    need: Callable[[int], Need | None], *, start: int, unit: int, limit: int, memory: int, most: int = MOST
) -> Found:
    """Returns the largest batch that fits into `memory`, within `CLOSE` of it.

    Memory grows nearly linearly with the batch, so that a line through compiled sizes predicts the largest; the
    prediction is compiled, and the interval between what fits and what does not is bisected.

    Args:
      need: compiles a batch size; None if the compiler refuses it, as a TPU's does where it does not fit.
      start: the batch size to begin with, a multiple of `unit`.
      unit: batch sizes are multiples of it.
      limit: the largest batch size of interest.
      memory: bytes available.
      most: compilations at most.
    """
    tried: dict[int, Need | None] = {}
    guess: int | None = start
    while guess is not None and len(tried) < most:
        tried[guess] = need(guess)
        guess = _next(tried, unit, limit, memory)
    low, high = _bounds(tried, memory)
    return Found(low, high, tried)


def _bounds(tried: dict[int, Need | None], memory: int) -> tuple[int | None, int | None]:
    fitting = [batch for batch, needed in tried.items() if needed is not None and needed.bytes <= memory]
    low = max(fitting, default=None)
    return low, min((batch for batch in tried if batch not in fitting), default=None)


def _next(tried: dict[int, Need | None], unit: int, limit: int, memory: int) -> int | None:
    """Returns the batch size to compile next; None if the largest one is close enough."""
    low, high = _bounds(tried, memory)
    if low is None:
        assert high is not None
        return high // 2 // unit * unit or None
    top = limit // unit * unit if high is None else high - unit
    used = tried[low]
    assert used is not None
    if top <= low or memory - used.bytes <= (1 - CLOSE) * used.growing or (high is not None and low >= CLOSE * high):
        return None
    known = sorted((batch, needed.bytes) for batch, needed in tried.items() if needed is not None)
    (small, few), (large, many) = known[0], known[-1]
    slope = used.growing / low if small == large else (many - few) / (large - small)
    # A little less than predicted, because it has to fit.
    guess = int(small + (0.97 * memory - few) / slope) if slope > 0 else top
    if not low < guess <= top:
        guess = top if high is None else (low + high) // 2
    return max(low + unit, guess // unit * unit)
