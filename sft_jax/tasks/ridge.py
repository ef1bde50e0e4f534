"""Ridge regression on fixed features, with its penalty selected on held-out images."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Ridge penalties, relative to the mean eigenvalue of the features' covariance; selected on held-out images.
PENALTIES = np.logspace(-6, 1, 15)
# Folds of the cross-validation on the training images.
PARTS = 3

# Features [m, channels] and labels [m, ...] of images that select settings.
Labelled = tuple[np.ndarray, np.ndarray]


class Ridge(NamedTuple):
    """The solution: kernel [channels, outputs] and bias [outputs]; outputs and labels of the held-out images."""

    kernel: np.ndarray
    bias: np.ndarray
    outputs: np.ndarray
    labels: np.ndarray


def solve_ridge(
    features: np.ndarray,
    labels: np.ndarray,
    chosen_on: Labelled | None,
    *,
    parts: np.ndarray,
    encode: Callable[[np.ndarray], np.ndarray],
    cost: Callable[[np.ndarray, np.ndarray], float],
) -> Ridge:
    """Solves min over W, b of sum |x W + b - encode(y)|^2 + penalty |W|^2 (Hoerl and Kennard, 1970).

    It is solved for all `PENALTIES` with one eigendecomposition in double precision.

    Args:
      features: [n, views, channels] of the training images.
      labels: [n, ...].
      chosen_on: the images that select the penalty; None to select it by cross-validation on the training images.
      parts: int [n], the fold of each training image, from 0 to `PARTS` - 1.
      encode: labels -> targets [n, outputs].
      cost: (outputs, labels) -> what the penalty minimises, summed over folds.
    """
    whole = _Solutions(features, encode(labels))
    if chosen_on is not None:
        rounds = [(whole, chosen_on)]
    else:
        rounds = [
            (
                _Solutions(features[parts != part], encode(labels[parts != part])),
                (features[parts == part, 0], labels[parts == part]),
            )
            for part in range(min(PARTS, len(labels)))
        ]
    costs = [
        sum(cost(solutions.outputs(held[0], penalty), held[1]) for solutions, held in rounds) for penalty in PENALTIES
    ]
    # Ties go to the strongest penalty.
    penalty = PENALTIES[len(costs) - 1 - int(np.argmin(costs[::-1]))]
    outputs = np.concatenate([solutions.outputs(held[0], penalty) for solutions, held in rounds])
    return Ridge(*whole.solution(penalty), outputs, np.concatenate([held[1] for _, held in rounds]))


class _Solutions:
    """The solutions for all penalties."""

    def __init__(self, features: np.ndarray, targets: np.ndarray):
        wide = features.reshape(-1, features.shape[-1]).astype(np.float64)
        targets = np.repeat(targets, features.shape[1], axis=0)
        self._centre, self._mean = wide.mean(0), targets.mean(0)
        wide -= self._centre
        values, self._vectors = np.linalg.eigh(wide.T @ wide / len(wide))
        self._values = np.maximum(values, 0.0)
        self._projected = self._vectors.T @ (wide.T @ (targets - self._mean) / len(wide))

    def solution(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns kernel [channels, outputs] and bias [outputs]."""
        floor = np.finfo(np.float64).tiny
        kernel = self._vectors @ (self._projected / (self._values + penalty * self._values.mean() + floor)[:, None])
        return kernel, self._mean - self._centre @ kernel

    def outputs(self, features: np.ndarray, penalty: float) -> np.ndarray:
        """Computes outputs [m, outputs] for features [m, channels]."""
        kernel, bias = self.solution(penalty)
        return features.astype(np.float64) @ kernel + bias
