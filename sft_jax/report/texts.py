"""Texts of a report, with what each of their tokens contributes to the prediction."""

from collections.abc import Sequence

import jax

from sft_jax.data.texts.reading import Text
from sft_jax.inference.attribution import METHOD, explained
from sft_jax.inference.spans import Span
from sft_jax.training.experiment import Experiment
from sft_jax.training.phase_programs import Variables


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
        """Returns each text with what its tokens contribute to one of the outputs, see `explained`."""
        return explained(self._model, self._reading, texts, outputs)
