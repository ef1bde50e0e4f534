"""Image classification: one label per image, cross-entropy loss, and metrics from accuracy to calibration."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sft_jax.data import Dataset
from sft_jax.tasks.base import Batch
from sft_jax.tasks.class_weights import class_weights
from sft_jax.tasks.classification_sums import EvalSums, eval_sums, summarize
from sft_jax.tasks.decoding import ClassDecoder
from sft_jax.tasks.linear_probe import solve_head
from sft_jax.tasks.losses import cross_entropy, weight_scale
from sft_jax.tasks.monitor import Monitor
from sft_jax.tasks.statistics import is_unequal
from sft_jax.tasks.weighted import WeightedTask, file_of

# Maximum number of classes for which results.json contains the full confusion matrix.
DENSE_CLASSES = 200


@dataclasses.dataclass(frozen=True)
class Classification(WeightedTask):
    """Image classification with the target "label", int32 [n]."""

    targets = ("label",)
    monitors = {  # noqa: RUF012  # never changed
        monitor.name: monitor
        for monitor in (
            Monitor("val_accuracy", "validation accuracy"),
            Monitor("val_balanced_accuracy", "balanced validation accuracy"),
            Monitor("val_macro_f1", "validation macro F1"),
            Monitor("val_loss", "validation loss", lower_is_better=True, percent=False),
        )
    }

    @classmethod
    def create(cls, config: ConfigDict, dataset: Dataset) -> Self:
        """See `Task`."""
        settings = config.regularization
        weights = class_weights(settings.class_weights, dataset.train.labels, dataset.class_names)
        return cls(dataset.class_names, settings.label_smoothing, weights, file_of(settings.class_weights))

    @classmethod
    def of_network(cls, names: Sequence[str], learnt: Mapping[str, Any]) -> Self:
        """See `Task`."""
        return cls(tuple(names))

    def decoder(self) -> ClassDecoder:
        """See `Task`."""
        return ClassDecoder(self.class_names)

    def described(self) -> str:
        """See `Task`."""
        return f"{self.outputs} classes"

    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """See `Task`."""
        return cross_entropy(outputs, batch["label"], self.label_smoothing, self.weights())

    def loss_scale(self, batch: Batch, axis_name: str | None) -> jax.Array | None:
        """See `weight_scale`."""
        weights = self.weights()
        return None if weights is None else weight_scale(weights, batch["label"], axis_name)

    def train_sums(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Counts correct predictions."""
        return {"correct": (outputs.argmax(-1) == batch["label"]).sum(dtype=jnp.int32)}

    def train_figures(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
        """Returns the accuracy on the augmented training examples."""
        return {"accuracy": sums["correct"] / examples}

    def sums(self, outputs: jax.Array, batch: Batch, mask: jax.Array) -> EvalSums:
        """See `eval_sums`."""
        return eval_sums(outputs, batch["label"], mask)

    def summarize(self, sums: EvalSums) -> dict[str, Any]:
        """See the function `summarize`."""
        return summarize(sums)

    def results(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """Returns `figures`, six of them with the prefix "test_", and the class names.

        With more than `DENSE_CLASSES` classes `confusion` would be mostly zeros; it is replaced by `confusion_counts`,
        [truth, prediction, images] for each pair of labels that occurs.
        """
        figures = dict(figures)
        names = ("accuracy", "top5", "loss", "count", "balanced_accuracy", "macro_f1")
        named = {f"test_{name}": figures.pop(name) for name in names}
        if len(self.class_names) > DENSE_CLASSES:
            confusion = np.array(figures.pop("confusion"))
            rows = np.argwhere(confusion)
            figures["confusion_counts"] = np.column_stack([rows, confusion[tuple(rows.T)]]).tolist()
        return named | {"class_names": list(self.class_names), **figures}

    @classmethod
    def figures_of(cls, results: Mapping[str, Any]) -> dict[str, Any]:
        """See `Task`."""
        figures = super().figures_of(results)
        if "confusion_counts" in figures:
            del figures["confusion_counts"]
            figures["confusion"] = _confusion(results).tolist()
        return figures

    @classmethod
    def conclusion(cls, results: Mapping[str, Any]) -> str:
        """See `Task`; adds class-balanced metrics if the classes are imbalanced."""
        unequal = (
            f"balanced accuracy {results['test_balanced_accuracy']:.2%}, macro F1 {results['test_macro_f1']:.2%}, "
            if is_unequal(_confusion(results))
            else ""
        )
        return (
            f"test accuracy {results['test_accuracy']:.2%} on {results['test_count']:,} {cls.unit}s, {unequal}"
            f"loss {results['test_loss']:.4f}"
        )

    @classmethod
    def details(cls, results: Mapping[str, Any]) -> str:
        """See `Task`."""
        return (
            f"accuracy {results['test_accuracy']:.2%} on {results['test_count']:,} {cls.unit}s, "
            f"top-5 {results['test_top5']:.2%}, loss {results['test_loss']:.4f}, calibration error {results['ece']:.4f}"
        )

    def closed_form_head(
        self, features: np.ndarray, targets: Mapping[str, np.ndarray], chosen_on: tuple[np.ndarray, Mapping] | None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """See `solve_head`."""
        held_out = None if chosen_on is None else (chosen_on[0], chosen_on[1]["label"])
        return solve_head(features, targets["label"], len(self.class_names), held_out)


def _confusion(results: Mapping[str, Any]) -> np.ndarray:
    """Returns the confusion matrix of results.json, int64 [classes, classes]."""
    if "confusion" in results:
        return np.asarray(results["confusion"], np.int64)
    classes = len(results["class_names"])
    truth, predicted, counts = np.array(results["confusion_counts"]).reshape(-1, 3).T
    confusion = np.zeros((classes, classes), np.int64)
    confusion[truth, predicted] = counts
    return confusion
