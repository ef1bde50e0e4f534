"""Brings the images of a split to the devices: all at once where they fit, else in pieces as they are needed."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import jax
import numpy as np

from sft_jax.data.dataset import ArraySplit, Split
from sft_jax.runtime import processes
from sft_jax.runtime.devices import Devices

# A split may take this share of the memory that is free on a device; activations and gradients need the rest.
RESIDENT_SHARE = 0.25
# Steps whose images travel together when a split is streamed.
STREAMED_STEPS = 8


@dataclasses.dataclass(frozen=True)
class Piece:
    """Consecutive steps for one compiled call.

    Attributes:
      arguments: images, labels, order, the extra arrays, start, stop: on the devices, as `epoch.py` wants them.
      rows: which entries of the call's per-step results belong to these steps.
    """

    arguments: tuple[jax.Array, ...]
    rows: slice

    @property
    def steps(self) -> int:
        """How many steps they are."""
        return self.rows.stop - self.rows.start


class Pace:
    """How many steps a call should hold: about `seconds` of work, so that bars move and signals are heard.

    All processes keep the same pace.
    """

    def __init__(self, seconds: float = 1.0):
        self._seconds = seconds
        self.steps = 1

    @contextlib.contextmanager
    def timing(self, steps: int) -> Iterator[None]:
        """Measures a call of `steps` steps made within. Grows at most fourfold at a time: first calls mislead."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        (slowest,) = processes.largest(seconds)
        self.steps = max(1, min(4 * self.steps, round(steps * self._seconds / max(slowest, 1e-6))))


class Feed:
    """A split as a sequence of `Piece`s in any order of its images.

    Attributes:
      split: where the images come from.
    """

    def __init__(self, split: Split, devices: Devices):
        self.split, self._devices = split, devices
        self._resident: tuple[jax.Array, jax.Array] | None = None
        if isinstance(split, ArraySplit) and split.images.nbytes <= RESIDENT_SHARE * devices.free_bytes():
            self._resident = devices.replicate((split.images, split.labels))

    def __len__(self) -> int:
        return len(self.split)

    @property
    def resident(self) -> bool:
        """Whether all images are on the devices."""
        return self._resident is not None

    @property
    def sharded(self) -> tuple[bool, bool, bool]:
        """Which of images, labels and order have a leading axis of devices (see `Devices.compile`)."""
        return (False, False, True) if self.resident else (True, True, True)

    def pieces(self, order: np.ndarray, *extra: np.ndarray, first: int = 0, pace: Pace) -> Iterator[Piece]:
        """The steps from `first` on.

        Args:
          order: int32 [steps, batch], rows of the split.
          extra: further arrays [steps, batch] that go along with it.
          first: the first step to run.
          pace: asked for the length of each piece; a streamed split has pieces of a fixed length.
        """
        if self._resident is not None:
            return self._resident_pieces(self._resident, order, extra, first, pace)
        return self._streamed_pieces(order, extra, first)

    def _resident_pieces(self, data, order, extra, first, pace) -> Iterator[Piece]:
        tables = [self._devices.split(table) for table in (order, *extra)]
        while first < len(order):
            stop = min(first + pace.steps, len(order))
            yield Piece((*data, *tables, *self._bounds(first, stop)), slice(first, stop))
            first = stop

    def _streamed_pieces(self, order, extra, first) -> Iterator[Piece]:
        # Within a piece a device reads its own images from the first to the last.
        share = order.shape[1] // self._devices.count
        own = np.arange(STREAMED_STEPS * share, dtype=np.int32).reshape(STREAMED_STEPS, share)
        own_order = self._devices.split(np.tile(own, (1, self._devices.count)))
        batches = self.split.batches(self._devices.own_part(order[first:]))
        while first < len(order):
            stop = min(first + STREAMED_STEPS, len(order))
            images, labels = zip(*(next(batches) for _ in range(first, stop)), strict=True)
            data = [self._devices.split_part(_fill(np.stack(rows)), flat=True) for rows in (images, labels)]
            tables = [self._devices.split(_fill(table[first:stop])) for table in extra]
            yield Piece((*data, own_order, *tables, *self._bounds(0, stop - first)), slice(0, stop - first))
            first = stop

    def _bounds(self, start: int, stop: int) -> tuple[jax.Array, jax.Array]:
        return self._devices.replicate((np.int32(start), np.int32(stop)))


def _fill(table: np.ndarray) -> np.ndarray:
    """Pads the last piece's steps with zeros, which are not run, to the length of all others: no second compilation."""
    missing = STREAMED_STEPS - len(table)
    return np.concatenate([table, np.zeros((missing, *table.shape[1:]), table.dtype)]) if missing else table
