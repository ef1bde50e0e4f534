"""Image classification: one label per image, cross-entropy loss, and metrics from accuracy to calibration."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sft_jax.data import Dataset
from sft_jax.errors import UserError
from sft_jax.tasks.base import Batch, Monitor, Task
from sft_jax.tasks.class_weights import class_weights
from sft_jax.tasks.linear_probe import solve_head
from sft_jax.tasks.losses import cross_entropy, weight_scale
from sft_jax.tasks.statistics import CALIBRATION_BINS, balanced_accuracy, class_figures, is_unequal, mean_f1

# Maximum number of classes for which results.json contains the full confusion matrix.
DENSE_CLASSES = 200


class EvalSums(NamedTuple):
    """Sums over evaluated images. Integers are exact; `loss` and `calibration` are subject to rounding.

    Attributes:
      total: int32, number of images.
      loss: float32, sum of cross-entropies.
      correct: int32, predictions equal to the label.
      top5: int32, labels among the five highest logits (all images if there are at most five classes).
      confusion: int32 [classes, classes], rows are true classes.
      calibration: float32 [3, CALIBRATION_BINS], per confidence bin: images, sum of confidences, correct predictions
        (Guo et al., 2017, arXiv:1706.04599).
    """

    total: jax.Array
    loss: jax.Array
    correct: jax.Array
    top5: jax.Array
    confusion: jax.Array
    calibration: jax.Array


def eval_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> EvalSums:
    """Computes the sums of a batch: logits [batch, classes], labels int [batch], mask bool [batch].

    Masked-out rows are excluded with `where` instead of a product, because 0 * NaN is NaN.
    """
    classes = logits.shape[-1]
    logits = logits.astype(jnp.float32)
    prediction = logits.argmax(-1)
    hit = mask & (prediction == labels)
    # A label's rank is the number of classes that it does not beat; ties go to the earlier class, as in argmax. NaN
    # beats no class.
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    not_earlier = jnp.arange(classes)[None, :] >= labels[:, None]
    rank = classes - ((own > logits) | ((own == logits) & not_earlier)).sum(-1)
    confidence = jax.nn.softmax(logits).max(-1)
    bins = jnp.clip((confidence * CALIBRATION_BINS).astype(jnp.int32), 0, CALIBRATION_BINS - 1)
    counted = mask.astype(jnp.float32)
    per_image = jnp.stack([counted, jnp.where(mask, confidence, 0.0), hit.astype(jnp.float32)])
    return EvalSums(
        total=mask.sum(dtype=jnp.int32),
        loss=jnp.where(mask, cross_entropy(logits, labels), 0.0).sum(),
        correct=hit.sum(dtype=jnp.int32),
        top5=(mask & (rank < 5)).sum(dtype=jnp.int32),
        confusion=jnp.zeros((classes, classes), jnp.int32).at[labels, prediction].add(mask.astype(jnp.int32)),
        calibration=jnp.zeros((3, CALIBRATION_BINS), jnp.float32).at[:, bins].add(per_image),
    )


def summarize(sums: EvalSums) -> dict[str, Any]:
    """Computes the metrics of a split.

    They are loss (mean), accuracy, top5, count, balanced_accuracy, macro_f1, per_class_accuracy, confusion and ece.
    Balanced accuracy is the mean accuracy of the classes that have images; macro F1 is the mean F1 of the classes that
    have images or were predicted. Both are as in scikit-learn.

    ece, the expected calibration error, is the mean gap between confidence and accuracy over confidence bins, weighted
    by their images (Guo et al., 2017, arXiv:1706.04599). The accuracy of a class without images is None.
    """
    total = int(sums.total)
    confusion = np.asarray(sums.confusion)
    images, confidence, correct = np.asarray(sums.calibration, np.float64)
    per_class = [
        float(row[label] / row.sum()) if row.sum() else None for label, row in enumerate(confusion.astype(np.int64))
    ]
    return {
        "loss": float(sums.loss) / total,
        "accuracy": int(sums.correct) / total,
        "top5": int(sums.top5) / total,
        "count": total,
        "balanced_accuracy": balanced_accuracy(confusion),
        "macro_f1": mean_f1(class_figures(confusion.astype(np.int64))),
        "per_class_accuracy": per_class,
        "confusion": confusion.tolist(),
        "ece": float(np.abs(confidence - correct).sum() / images.sum()),
    }


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """Image classification with the target "label", int32 [n].

    Attributes:
      class_names: in label order.
      label_smoothing, class_weights: settings of the training loss, see `cross_entropy`.
      class_weights_file: the file with the class weights, if there is one.
    """

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

    class_names: tuple[str, ...]
    label_smoothing: float | jax.Array = 0.0
    class_weights: tuple[float, ...] | None = None
    class_weights_file: str | None = None

    @classmethod
    def create(cls, config: ConfigDict, dataset: Dataset) -> "Classification":
        """See `Task`."""
        settings = config.regularization
        weights = class_weights(settings.class_weights, dataset.train.labels, dataset.class_names)
        file = None if settings.class_weights in ("none", "balanced") else settings.class_weights
        return cls(dataset.class_names, settings.label_smoothing, weights, file)

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """Number of classes."""
        return len(self.class_names)

    def with_settings(self, config: ConfigDict) -> "Classification":
        """See `Task`."""
        return dataclasses.replace(self, label_smoothing=config.regularization.label_smoothing)

    def facts(self) -> dict[str, Any]:
        """Returns the class weights if they come from a file, which may change."""
        return {} if self.class_weights_file is None else {"class_weights": self.class_weights}

    def check_facts(self, record: Mapping[str, Any], run: Path) -> None:
        """See `Task`."""
        weights = record.get("class_weights")
        if weights is not None and tuple(weights) != self.class_weights:
            raise UserError(
                f"regularization.class_weights={self.class_weights_file}: the weights have changed since {run} began; "
                f"restore them, or start a new run with another --workdir"
            )

    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """See `Task`."""
        return cross_entropy(outputs, batch["label"], self.label_smoothing, self._weights())

    def loss_scale(self, batch: Batch, axis_name: str | None) -> jax.Array | None:
        """See `weight_scale`."""
        weights = self._weights()
        return None if weights is None else weight_scale(weights, batch["label"], axis_name)

    def _weights(self) -> jax.Array | None:
        return None if self.class_weights is None else jnp.asarray(self.class_weights, jnp.float32)

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
    def conclusion(cls, results: Mapping[str, Any]) -> str:
        """See `Task`; adds class-balanced metrics if the classes are imbalanced."""
        unequal = (
            f"balanced accuracy {results['test_balanced_accuracy']:.2%}, macro F1 {results['test_macro_f1']:.2%}, "
            if is_unequal(_confusion(results))
            else ""
        )
        return (
            f"test accuracy {results['test_accuracy']:.2%} on {results['test_count']:,} images, {unequal}"
            f"loss {results['test_loss']:.4f}"
        )

    @classmethod
    def details(cls, results: Mapping[str, Any]) -> str:
        """See `Task`."""
        return (
            f"accuracy {results['test_accuracy']:.2%} on {results['test_count']:,} images, "
            f"top-5 {results['test_top5']:.2%}, loss {results['test_loss']:.4f}, calibration error {results['ece']:.4f}"
        )

    def closed_form_head(
        self, features: np.ndarray, targets: Mapping[str, np.ndarray], chosen_on: tuple[np.ndarray, Mapping] | None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """See `solve_head`."""
        held_out = None if chosen_on is None else (chosen_on[0], chosen_on[1]["label"])
        return solve_head(features, targets["label"], len(self.class_names), held_out)


def summary_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """Inverts `Classification.results`: returns the test metrics in the form of `summarize`."""
    figures = {name.removeprefix("test_"): value for name, value in results.items()}
    if "confusion_counts" in figures:
        del figures["confusion_counts"]
        figures["confusion"] = _confusion(results).tolist()
    return figures


def _confusion(results: Mapping[str, Any]) -> np.ndarray:
    """Returns the confusion matrix of results.json, int64 [classes, classes]."""
    if "confusion" in results:
        return np.asarray(results["confusion"], np.int64)
    classes = len(results["class_names"])
    truth, predicted, counts = np.array(results["confusion_counts"]).reshape(-1, 3).T
    confusion = np.zeros((classes, classes), np.int64)
    confusion[truth, predicted] = counts
    return confusion
