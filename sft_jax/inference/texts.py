"""A trained network of texts: logits, predictions and features of strings."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from sft_jax.data.texts.reading import Text, TextReading
from sft_jax.errors import UserError
from sft_jax.inference.attribution import explained
from sft_jax.inference.network import BATCH, TrainedNetwork
from sft_jax.inference.spans import Span
from sft_jax.inference.text_batches import batches
from sft_jax.models.architecture import Texts
from sft_jax.models.weights import Weights

# Texts that callers with many give at a time: among them those of similar lengths are computed together.
CHUNK = 1024


class TextClassifier(TrainedNetwork):
    """A network of texts with its tokenizer, see `TrainedNetwork`.

    Its inputs are tokens int32 [n, length] and segments uint8 [n, length].

    Attributes:
      reading: how texts become tokens.
    """

    def __init__(self, program: Callable[..., jax.Array], class_names: Sequence[str], *, padding: int, **others: Any):
        super().__init__(program, class_names, **others)
        self.reading = TextReading(self.learnt["tokenizer"], self.learnt["length"], padding)

    def logits(self, examples: Any) -> np.ndarray:
        """Computes the logits of texts, float32 [n, classes].

        Args:
          examples: a string, a pair of them as a tuple, or a list of either. Longer ones than `reading.length` tokens
            lose their ends, as in training.

        Raises:
          TypeError: they are neither.
        """
        return self._each(self.program, texts_of(examples))

    def features(self, examples: Any) -> np.ndarray:
        """Computes the features of texts as for `logits`: float32 [n, channels].

        Raises:
          UserError: the network is an export, whose program gives logits only.
        """
        return self._each(self._of_backbone(), texts_of(examples))

    def explain(self, examples: Any, outputs: np.ndarray) -> list[tuple[Span, ...]]:
        """Returns each text as for `logits` in parts, with what they contribute to one of the `outputs`, int [n].

        Raises:
          UserError: the network is an export.
        """
        return explained(self._to_explain(), self.reading, texts_of(examples), outputs)

    def _each(self, program: Callable[..., jax.Array], texts: list[Text]) -> np.ndarray:
        if not texts:
            return np.zeros((0, len(self.class_names)), np.float32)
        rows, outputs = [], []
        for own, *inputs in batches(self.reading, self.reading.read(texts), BATCH):
            rows.append(own)
            outputs.append(self._run(program, inputs))
        return np.concatenate(outputs)[np.argsort(np.concatenate(rows))]


def texts_of(examples: Any) -> list[Text]:
    """Returns strings, or pairs of them, as texts. Raises TypeError if they are neither."""
    listed = [examples] if isinstance(examples, str | tuple) else list(examples)
    texts = [(each,) if isinstance(each, str) else each for each in listed]
    for text in texts:
        is_pair = isinstance(text, list | tuple) and len(text) in (1, 2)
        if not is_pair or not all(isinstance(part, str) for part in text):
            raise TypeError(f"a text must be a string or a pair of strings, not {text!r}")
    return [tuple(text) for text in texts]


def text_facts(weights: Weights, texts: Texts, source: str) -> dict[str, Any]:
    """Returns what the predictions of a network that takes `texts` need besides `weights`, those of `source`.

    Raises:
      UserError: they have no tokenizer.
    """
    if weights.tokenizer is None:
        raise UserError(f"{source} has no tokenizer; convert it again, with --tokenizer FILE")
    return {"length": texts.longest, **weights.learnt, "tokenizer": weights.tokenizer}
