"""Closed-form solution for a linear head on fixed features, the starting point for training it."""

import numpy as np

# Ridge penalties, relative to the mean eigenvalue of the features' covariance; selected on held-out images.
PENALTIES = np.logspace(-6, 1, 15)
# Least squares fits targets 0 and 1, which are too close together for logits; scale factors to choose from.
STRETCHES = np.logspace(-1, 3, 81)
# Folds of the cross-validation on the training images.
PARTS = 3

Labelled = tuple[np.ndarray, np.ndarray]


def solve_head(
    features: np.ndarray, labels: np.ndarray, classes: int, chosen_on: Labelled | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Solves a ridge regression of one-hot labels on the features, scaled to give logits.

    min over W, b of sum |x W + b - onehot(y)|^2 + penalty |W|^2 (Hoerl and Kennard, 1970), solved for all `PENALTIES`
    with one eigendecomposition in double precision.

    Args:
      features: [n, views, channels] of the training images.
      labels: int [n].
      classes: number of classes.
      chosen_on: features [m, channels] and labels int [m] of the images that select penalty and scale; None to select
        them by cross-validation on the training images.

    Returns:
      kernel float32 [channels, classes] and bias float32 [classes].
    """
    whole = _Solutions(features, labels, classes)
    if chosen_on is not None:
        rounds = [(whole, chosen_on)]
    else:
        parts = np.empty(len(labels), int)
        parts[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % PARTS  # stratified folds
        rounds = [
            (
                _Solutions(features[parts != part], labels[parts != part], classes),
                (features[parts == part, 0], labels[parts == part]),
            )
            for part in range(min(PARTS, len(labels)))
        ]
    hits = [
        sum(_hits(solutions.logits(held[0], penalty), held[1]) for solutions, held in rounds) for penalty in PENALTIES
    ]
    # Ties go to the strongest penalty.
    penalty = PENALTIES[len(hits) - 1 - int(np.argmax(hits[::-1]))]
    logits = np.concatenate([solutions.logits(held[0], penalty) for solutions, held in rounds])
    truth = np.concatenate([held[1] for _, held in rounds])
    losses = [_cross_entropy(stretch * logits, truth) for stretch in STRETCHES]
    stretch = STRETCHES[int(np.argmin(losses))]
    kernel, bias = whole.solution(penalty)
    return (stretch * kernel).astype(np.float32), (stretch * bias).astype(np.float32)


class _Solutions:
    """The solutions for all penalties, see `solve_head`."""

    def __init__(self, features: np.ndarray, labels: np.ndarray, classes: int):
        wide = features.reshape(-1, features.shape[-1]).astype(np.float64)
        targets = np.eye(classes)[np.repeat(labels, features.shape[1])]
        self._centre, self._mean = wide.mean(0), targets.mean(0)
        wide -= self._centre
        values, self._vectors = np.linalg.eigh(wide.T @ wide / len(wide))
        self._values = np.maximum(values, 0.0)
        self._projected = self._vectors.T @ (wide.T @ (targets - self._mean) / len(wide))

    def solution(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns kernel [channels, classes] and bias [classes]."""
        floor = np.finfo(np.float64).tiny
        kernel = self._vectors @ (self._projected / (self._values + penalty * self._values.mean() + floor)[:, None])
        return kernel, self._mean - self._centre @ kernel

    def logits(self, features: np.ndarray, penalty: float) -> np.ndarray:
        """Computes logits [m, classes] for features [m, channels]."""
        kernel, bias = self.solution(penalty)
        return features.astype(np.float64) @ kernel + bias


def _hits(logits: np.ndarray, labels: np.ndarray) -> int:
    return int((logits.argmax(1) == labels).sum())


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    logits = logits - logits.max(1, keepdims=True)
    return float((np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]).mean())
