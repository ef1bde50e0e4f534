"""Texts of a report, with what each of their tokens contributes to the prediction."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.data.texts.reading import Piece, Text
from sft_jax.inference.attribution import METHOD, attributions
from sft_jax.training.experiment import Experiment
from sft_jax.training.phase_programs import Variables

# Longer texts are cut there on the page.
CHARACTERS = 1200
# Texts per call; the last one is padded, so that there is one compilation for each length.
BATCH = 8


class Span(NamedTuple):
    """A part of a text: its characters, and what it contributes to the prediction, -1 (against) to 1 (for)."""

    text: str
    weight: float = 0.0


def plain(text: Text) -> tuple[Span, ...]:
    """Returns a text, or a pair of them, without contributions."""
    joined = " ‖ ".join(text)
    return (Span(joined if len(joined) <= CHARACTERS else f"{joined[:CHARACTERS]} …"),)


def weighed(text: Text, pieces: Sequence[Piece], weights: np.ndarray) -> tuple[Span, ...]:
    """Returns a text with the `weights` of its tokens, its `pieces`, divided by the largest."""
    scale = max(float(np.abs(weights[: len(pieces)]).max(initial=0)), 1e-12)
    spans: list[Span] = []
    for which, whole in enumerate(text):
        if which:
            spans.append(Span(" ‖ "))
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
            spans.append(Span(whole[done : done + CHARACTERS]))
    return tuple(spans)


class TextExplainer:
    """Weighs the tokens of texts for `weights` of an experiment, on this process's devices alone.

    Attributes:
      method: "integrated gradients".
    """

    method = METHOD

    def __init__(self, experiment: Experiment, weights: Variables):
        self._model = experiment.network.bind(*jax.device_get(tuple(weights)))
        reading = experiment.dataset.reading
        assert reading is not None
        self._reading = reading

    def spans(self, texts: Sequence[Text], outputs: Sequence[int]) -> list[tuple[Span, ...]]:
        """Returns each text with what its tokens contribute to one of the outputs, see `attributions`."""
        read, pieces = self._reading.read(texts), [self._reading.pieces(text) for text in texts]
        special = np.zeros(read.tokens.shape, bool)
        for row, own in enumerate(pieces):
            special[row, : len(own)] = [last <= first for _, (first, last), _ in own]
        baseline = np.where(special, read.tokens, self._reading.padding)
        found = []
        for first in range(0, len(texts), BATCH):
            rows = np.arange(first, min(first + BATCH, len(texts)))
            rows = np.concatenate([rows, np.repeat(rows[-1:], BATCH - len(rows))])
            parts = (read.tokens, read.segments, baseline, np.asarray(outputs, np.int32))
            weights = np.asarray(attributions(self._model, *(jnp.asarray(part[rows]) for part in parts)))
            found += [
                weighed(texts[row], pieces[row], own)
                for row, own in zip(rows[: len(texts) - first], weights, strict=False)
            ]
        return found
