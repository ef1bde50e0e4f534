"""Sums over the pixels of evaluated images of which the metrics of segmentation are made."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.data.images.mask import VOID
from sft_jax.tasks.losses import cross_entropy

# Counts are kept as multiples of this and a rest, each of which float32 holds exactly; int32 would overflow after two
# billion pixels, some 8,000 images of 512 x 512.
UNIT = 2**16


class EvalSums(NamedTuple):
    """Sums over evaluated images; all but `loss` are exact.

    Attributes:
      total: int32, number of images.
      loss: float32, sum of the pixels' cross-entropies.
      confusion: float32 [2, classes, classes], pixels by true class (rows) and predicted class: whole `UNIT`s, rest.
    """

    total: jax.Array
    loss: jax.Array
    confusion: jax.Array


def eval_sums(logits: jax.Array, truth: jax.Array, mask: jax.Array) -> EvalSums:
    """Computes the sums of a batch of less than 2**31 pixels.

    Args:
      logits: [n, height, width, classes].
      truth: uint8 [n, height, width], pixels that are `VOID` do not count.
      mask: bool [n]; masked-out images are excluded with `where`, because 0 * NaN is NaN.
    """
    classes = logits.shape[-1]
    logits = logits.astype(jnp.float32)
    valid = (truth != VOID) & mask[:, None, None]
    loss = jnp.where(valid, cross_entropy(logits, labels_of(truth)), 0.0).sum()
    rows, columns = (
        jax.nn.one_hot(jnp.where(valid, values, classes).reshape(len(truth), -1), classes, dtype=jnp.float32)
        for values in (truth.astype(jnp.int32), logits.argmax(-1))
    )
    # Of each image exactly: products of 0 and 1, and fewer than 2**24 pixels.
    counts = jnp.einsum("npt,npq->ntq", rows, columns, precision="highest").astype(jnp.int32).sum(0)
    units = jnp.stack([counts // UNIT, counts % UNIT]).astype(jnp.float32)
    return EvalSums(mask.sum(dtype=jnp.int32), loss, units)


def labels_of(truth: jax.Array) -> jax.Array:
    """Returns masks as int32 labels of any class where they are `VOID`."""
    return jnp.where(truth == VOID, 0, truth).astype(jnp.int32)


def summarize(sums: EvalSums) -> dict[str, Any]:
    """Computes the metrics of a split from its sums.

    They are loss (the mean over pixels), mean_iou, pixel_accuracy, mean_accuracy, count (of images), per_class_iou,
    per_class_accuracy and confusion (pixels, rows are true classes). The intersection over union of a class is None if
    no pixel has it or is predicted as it; mean_iou is the mean of the others. The accuracy of a class is the fraction
    of its pixels that are predicted as it, None if there are none; mean_accuracy is the mean of the others.
    """
    units, rest = np.asarray(sums.confusion, np.float64).astype(np.int64)
    confusion = units * UNIT + rest
    loss = float(sums.loss) / int(confusion.sum())
    return {"loss": loss, "count": int(sums.total), **measures(confusion)}


def measures(confusion: np.ndarray) -> dict[str, Any]:
    """Computes the metrics of `summarize` that need only pixels by true (rows) and predicted class, int64."""
    right, truth = np.diag(confusion), confusion.sum(1)
    union, pixels = truth + confusion.sum(0) - right, int(confusion.sum())
    overlaps, accuracies = (_ratios(right, whole) for whole in (union, truth))
    return {
        "mean_iou": _mean(overlaps),
        "pixel_accuracy": int(right.sum()) / pixels,
        "mean_accuracy": _mean(accuracies),
        "per_class_iou": overlaps,
        "per_class_accuracy": accuracies,
        "confusion": confusion.tolist(),
    }


def _ratios(parts: np.ndarray, wholes: np.ndarray) -> list[float | None]:
    return [part / whole if whole else None for part, whole in zip(parts.tolist(), wholes.tolist(), strict=True)]


def _mean(values: list[float | None]) -> float:
    there = [value for value in values if value is not None]
    return sum(there) / len(there)
