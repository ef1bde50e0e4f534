"""What a network's outputs say: predictions for Python, for JSON, for CSV files and for the terminal."""

import abc
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sft_jax.errors import UserError

# Classes per image, if the user does not say.
TOP = 5

# The entries of an image's JSON object after "file".
Answer = dict[str, Any]


class Decoder(abc.ABC):
    """Turns the outputs of a task's network, float32 [n, outputs], into predictions."""

    # Columns of the printed table after the file; numbers are aligned on the right.
    heads: tuple[str, ...]
    right: tuple[str, ...] = ()

    def check(self, top: int | None) -> None:
        """Raises UserError if the network cannot predict, or `top`, what the user asked for, has no meaning."""
        if top is not None and top < 1:
            raise UserError(f"--top {top} must be 1 or more")

    @abc.abstractmethod
    def predict(self, outputs: np.ndarray, top: int | None) -> Any:
        """Returns the result of `Classifier.predict`. Raises ValueError if `top` is invalid."""

    @abc.abstractmethod
    def answers(self, outputs: np.ndarray, top: int | None) -> list[Answer]:
        """Returns the predictions as JSON objects."""

    @abc.abstractmethod
    def row(self, answer: Answer) -> tuple[str, ...]:
        """Formats an answer for the printed table."""

    @abc.abstractmethod
    def columns(self, top: int | None) -> list[str]:
        """Returns the columns of a CSV file after "file"."""

    @abc.abstractmethod
    def cells(self, answer: Answer) -> list[Any]:
        """Returns an answer's cells in these columns."""


class ClassDecoder(Decoder):
    """Ranks classes by their softmax."""

    heads, right = ("class", "sure", "next"), ("sure",)

    def __init__(self, class_names: Sequence[str]):
        self.class_names = tuple(class_names)

    def check(self, top: int | None = None) -> None:
        """Also raises UserError if the network has a single output, whose softmax is 1 for any image."""
        super().check(top)
        if len(self.class_names) == 1:
            raise UserError(
                "the network has a single output, which cannot be ranked as classes; use sigmoid of `logits` as its "
                "probability, or convert it to two outputs, 0 and that logit, for predictions with class names"
            )

    def predict(self, outputs: np.ndarray, top: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns class names [n, top] and probabilities, float32 [n, top], in descending order."""
        return ranked(outputs, np.asarray(jax.nn.softmax(outputs)), self.class_names, top)

    def answers(self, outputs: np.ndarray, top: int | None) -> list[Answer]:
        """See `Decoder`: label, its probability, and the `top` classes with theirs."""
        labels, probabilities = (values.tolist() for values in self.predict(outputs, top))
        return [
            {"label": names[0], "probability": chances[0], "top": pairs(names, chances)}
            for names, chances in zip(labels, probabilities, strict=True)
        ]

    def row(self, answer: Answer) -> tuple[str, ...]:
        """See `Decoder`."""
        following = ", ".join(f"{label} {probability:.1%}" for label, probability in answer["top"][1:])
        return answer["label"], f"{answer['probability']:.1%}", following

    def columns(self, top: int | None) -> list[str]:
        """See `Decoder`: label, probability, label_2, probability_2, ..."""
        ranks = range(2, min(top or TOP, len(self.class_names)) + 1)
        return ["label", "probability", *(f"{name}_{rank}" for rank in ranks for name in ("label", "probability"))]

    def cells(self, answer: Answer) -> list[Any]:
        """See `Decoder`."""
        return [cell for pair in answer["top"] for cell in pair]


def ranked(
    outputs: np.ndarray, probabilities: np.ndarray, names: Sequence[str], top: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks classes by `outputs` [n, classes]: the `top` names and probabilities, [n, top]. Ties keep their order."""
    top = TOP if top is None else top
    if top < 1:
        raise ValueError(f"top={top} must be 1 or more")
    order = np.argsort(-outputs, axis=-1, kind="stable")[:, :top]
    return np.array(names)[order], np.take_along_axis(probabilities, order, -1)


def pairs(names: Sequence[str], probabilities: Sequence[float]) -> list[list[Any]]:
    """Returns [name, probability] for each."""
    return [list(pair) for pair in zip(names, probabilities, strict=True)]


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Computes probabilities of logits, in float64."""
    return 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -700, 700)))
