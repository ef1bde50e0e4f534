"""A linear head on fixed features, in closed form: the start of training it further."""

import numpy as np

# Of the mean eigenvalue of the features' covariance; the one that serves the validation images best is taken.
PENALTIES = np.logspace(-6, 1, 15)
# Least squares aims at 0 and 1, which as logits are far too close together: they are stretched by the best of these.
STRETCHES = np.logspace(-1, 3, 81)


def solve_head(
    features: np.ndarray,
    labels: np.ndarray,
    validation_features: np.ndarray,
    validation_labels: np.ndarray,
    classes: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression of the classes' indicators on the features, stretched to be logits.

    min over W, b of sum |x W + b - onehot(y)|^2 + penalty |W|^2 (Hoerl and Kennard, 1970), solved for all `PENALTIES`
    with one eigendecomposition in double precision.

    Args:
      features: [n, channels] of the training images.
      labels: int [n].
      validation_features: [m, channels], which choose the penalty.
      validation_labels: int [m].
      classes: number of classes.

    Returns:
      kernel float32 [channels, classes] and bias float32 [classes].
    """
    wide = features.astype(np.float64)
    targets = np.eye(classes)[labels]
    centre, mean_target = wide.mean(0), targets.mean(0)
    wide -= centre
    values, vectors = np.linalg.eigh(wide.T @ wide / len(wide))
    values = np.maximum(values, 0.0)
    projected = vectors.T @ (wide.T @ (targets - mean_target) / len(wide))
    validation = (validation_features.astype(np.float64) - centre) @ vectors
    floor = np.finfo(np.float64).tiny
    solutions = [projected / (values + penalty * values.mean() + floor)[:, None] for penalty in PENALTIES]
    hits = [((validation @ solution + mean_target).argmax(1) == validation_labels).mean() for solution in solutions]
    # Of equally good ones the strongest penalty.
    kernel = vectors @ solutions[len(hits) - 1 - int(np.argmax(hits[::-1]))]
    bias = mean_target - centre @ kernel
    logits = validation_features.astype(np.float64) @ kernel + bias
    losses = [_cross_entropy(stretch * logits, validation_labels) for stretch in STRETCHES]
    stretch = STRETCHES[int(np.argmin(losses))]
    return (stretch * kernel).astype(np.float32), (stretch * bias).astype(np.float32)


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    logits = logits - logits.max(1, keepdims=True)
    return float((np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]).mean())
