"""Texts cut into the parts that stand for tokens, each with what it contributes to a prediction."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sft_jax.data.texts.reading import Piece, Text

# Longer texts are cut there on a page.
CHARACTERS = 1200
# Between the texts of a pair.
BETWEEN = " ‖ "


class Span(NamedTuple):
    """A part of a text: its characters, and what it contributes to the prediction, -1 (against) to 1 (for)."""

    text: str
    weight: float = 0.0


def plain(text: Text) -> tuple[Span, ...]:
    """Returns a text, or a pair of them, without contributions."""
    return (Span(_shortened(BETWEEN.join(text))),)


def weighed(text: Text, pieces: Sequence[Piece], weights: np.ndarray) -> tuple[Span, ...]:
    """Returns a text with the `weights` of its tokens, its `pieces`, divided by the largest."""
    scale = max(float(np.abs(weights[: len(pieces)]).max(initial=0)), 1e-12)
    spans: list[Span] = []
    for which, whole in enumerate(text):
        if which:
            spans.append(Span(BETWEEN))
        done = 0
        for (_, (first, last), part), weight in zip(pieces, weights, strict=False):
            if part != which or last <= first:
                continue
            first = max(first, done)  # byte-level tokens may share a character
            if first > done:
                spans.append(Span(whole[done:first]))
            if last > first:
                spans.append(Span(whole[first:last], float(weight) / scale))
            done = max(done, last)
        if done < len(whole):
            spans.append(Span(_shortened(whole[done:])))
    return tuple(spans)


def _shortened(text: str) -> str:
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]} …"
