"""The figures of a run: from evaluation sums to results.json and metrics.jsonl."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.tasks.losses import cross_entropy
from sft_jax.tasks.statistics import CALIBRATION_BINS, balanced_accuracy, class_figures, mean_f1

# Up to so many classes results.json has the whole confusion matrix.
DENSE_CLASSES = 200


class EvalSums(NamedTuple):
    """Sums over evaluated images. Whole numbers add up exactly; `loss` and `calibration` are rounded.

    Attributes:
      total: int32, images counted.
      loss: float32, sum of cross-entropies.
      correct: int32, predictions equal to the label.
      top5: int32, labels among the five highest logits (all of them where there are fewer classes).
      confusion: int32 [classes, classes], rows are the truth.
      calibration: float32 [3, CALIBRATION_BINS], per confidence bin: images, sum of confidences, correct ones
        (Guo et al., 2017, arXiv:1706.04599).
    """

    total: jax.Array
    loss: jax.Array
    correct: jax.Array
    top5: jax.Array
    confusion: jax.Array
    calibration: jax.Array


def eval_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> EvalSums:
    """The sums of one batch: logits [batch, classes], labels int [batch], mask bool [batch].

    Masked-out rows are left out by selection, not by a product: 0 * NaN is NaN.
    """
    classes = logits.shape[-1]
    logits = logits.astype(jnp.float32)
    prediction = logits.argmax(-1)
    hit = mask & (prediction == labels)
    # A label's rank counts the classes it does not beat; ties go to the earlier class, as in argmax. NaN beats nothing.
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
    """Figures of an evaluated split: loss (mean), accuracy, top5, count, balanced_accuracy, macro_f1,
    per_class_accuracy, confusion, ece.

    Balanced accuracy is the mean of the accuracies of the classes that have images; macro F1 that of the F1 of those
    that have images or were predicted. Both are scikit-learn's.

    The expected calibration error is the mean gap between confidence and accuracy over bins of confidence, weighted by
    their images (Guo et al., 2017, arXiv:1706.04599). A class with no image has accuracy None.
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


def test_results(sums: EvalSums, class_names: Sequence[str]) -> dict[str, Any]:
    """What results.json says of the test split: `summarize`, six of its names with "test_" before them.

    Of more than `DENSE_CLASSES` classes `confusion` would be mostly zeros: `confusion_counts` in its place has
    [truth, prediction, images] for each pair of labels that there was.
    """
    figures = summarize(sums)
    names = ("accuracy", "top5", "loss", "count", "balanced_accuracy", "macro_f1")
    named = {f"test_{name}": figures.pop(name) for name in names}
    if len(class_names) > DENSE_CLASSES:
        confusion = np.array(figures.pop("confusion"))
        rows = np.argwhere(confusion)
        figures["confusion_counts"] = np.column_stack([rows, confusion[tuple(rows.T)]]).tolist()
    return named | {"class_names": list(class_names), **figures}


def test_summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `test_results`: the figures of the test split as `summarize` gives them."""
    figures = {name.removeprefix("test_"): value for name, value in results.items()}
    if "confusion_counts" in figures:
        classes = len(figures["class_names"])
        truth, predicted, counts = np.array(figures.pop("confusion_counts")).reshape(-1, 3).T
        confusion = np.zeros((classes, classes), np.int64)
        confusion[truth, predicted] = counts
        figures["confusion"] = confusion.tolist()
    return figures
