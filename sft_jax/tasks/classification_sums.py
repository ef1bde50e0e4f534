"""Sums over evaluated images of which the metrics of classification are made."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.tasks.losses import cross_entropy
from sft_jax.tasks.statistics import CALIBRATION_BINS, balanced_accuracy, class_figures, mean_f1


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
