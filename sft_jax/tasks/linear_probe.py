"""A linear head on fixed features, in closed form: the start of training it further."""

import numpy as np

# Of the mean eigenvalue of the features' covariance; the one that serves images it was not solved on best is taken.
PENALTIES = np.logspace(-6, 1, 15)
# Least squares aims at 0 and 1, which as logits are far too close together: they are stretched by the best of these.
STRETCHES = np.logspace(-1, 3, 81)
# Parts of the training images, each of which is in turn not solved on, where there are no images to choose on.
PARTS = 3

Labelled = tuple[np.ndarray, np.ndarray]


def solve_head(
    features: np.ndarray, labels: np.ndarray, classes: int, chosen_on: Labelled | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression of the classes' indicators on the features, stretched to be logits.

    min over W, b of sum |x W + b - onehot(y)|^2 + penalty |W|^2 (Hoerl and Kennard, 1970), solved for all `PENALTIES`
    with one eigendecomposition in double precision.

    Args:
      features: [n, views, channels] of the training images.
      labels: int [n].
      classes: number of classes.
      chosen_on: features [m, channels] and labels int [m] of the images that choose penalty and stretch; None to choose
        by cross-validation on the training images.

    Returns:
      kernel float32 [channels, classes] and bias float32 [classes].
    """
    whole = _Solutions(features, labels, classes)
    if chosen_on is not None:
        rounds = [(whole, chosen_on)]
    else:
        parts = np.empty(len(labels), int)
        parts[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % PARTS  # every class in all parts
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
    # Of equally good ones the strongest penalty.
    penalty = PENALTIES[len(hits) - 1 - int(np.argmax(hits[::-1]))]
    logits = np.concatenate([solutions.logits(held[0], penalty) for solutions, held in rounds])
    truth = np.concatenate([held[1] for _, held in rounds])
    losses = [_cross_entropy(stretch * logits, truth) for stretch in STRETCHES]
    stretch = STRETCHES[int(np.argmin(losses))]
    kernel, bias = whole.solution(penalty)
    return (stretch * kernel).astype(np.float32), (stretch * bias).astype(np.float32)


class _Solutions:
    """The solutions for every penalty, see `solve_head`."""

    def __init__(self, features: np.ndarray, labels: np.ndarray, classes: int):
        wide = features.reshape(-1, features.shape[-1]).astype(np.float64)
        targets = np.eye(classes)[np.repeat(labels, features.shape[1])]
        self._centre, self._mean = wide.mean(0), targets.mean(0)
        wide -= self._centre
        values, self._vectors = np.linalg.eigh(wide.T @ wide / len(wide))
        self._values = np.maximum(values, 0.0)
        self._projected = self._vectors.T @ (wide.T @ (targets - self._mean) / len(wide))

    def solution(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        """Kernel [channels, classes] and bias [classes]."""
        floor = np.finfo(np.float64).tiny
        kernel = self._vectors @ (self._projected / (self._values + penalty * self._values.mean() + floor)[:, None])
        return kernel, self._mean - self._centre @ kernel

    def logits(self, features: np.ndarray, penalty: float) -> np.ndarray:
        """[m, classes] of features [m, channels]."""
        kernel, bias = self.solution(penalty)
        return features.astype(np.float64) @ kernel + bias


def _hits(logits: np.ndarray, labels: np.ndarray) -> int:
    return int((logits.argmax(1) == labels).sum())


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    logits = logits - logits.max(1, keepdims=True)
    return float((np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]).mean())
