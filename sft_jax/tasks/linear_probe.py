"""Closed-form solutions for a linear head on fixed features, the starting point for training it."""

import numpy as np

from sft_jax.tasks.ridge import PARTS, Labelled, solve_ridge

# Least squares fits targets 0 and 1, which are too close together for logits; scale factors to choose from.
STRETCHES = np.logspace(-1, 3, 81)

# Kernel float32 [channels, outputs] and bias float32 [outputs].
Head = tuple[np.ndarray, np.ndarray]


def solve_head(features: np.ndarray, labels: np.ndarray, classes: int, chosen_on: Labelled | None = None) -> Head:
    """Solves a ridge regression of one-hot labels on the features, scaled to give logits, see `solve_ridge`.

    Args:
      features: [n, views, channels] of the training images.
      labels: int [n].
      classes: number of classes.
      chosen_on: features [m, channels] and labels int [m] of the images that select penalty and scale; None to select
        them by cross-validation on the training images.
    """
    parts = np.empty(len(labels), int)
    parts[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % PARTS  # stratified folds
    ridge = solve_ridge(
        features, labels, chosen_on, parts=parts, encode=lambda labels: np.eye(classes)[labels], cost=_misses
    )
    stretch = min(STRETCHES, key=lambda stretch: _cross_entropy(stretch * ridge.outputs, ridge.labels))
    return (stretch * ridge.kernel).astype(np.float32), (stretch * ridge.bias).astype(np.float32)


def solve_labels(features: np.ndarray, labels: np.ndarray, chosen_on: Labelled | None = None) -> Head:
    """Solves a ridge regression of several labels per image, [n, labels] of 0 and 1, scaled to give their logits.

    For the other arguments see `solve_head`.
    """
    ridge = solve_ridge(
        features, labels, chosen_on, parts=_in_turn(labels), encode=lambda labels: labels.astype(float), cost=_squares
    )
    stretch = min(STRETCHES, key=lambda stretch: _binary(stretch * (ridge.outputs - 0.5), ridge.labels))
    return (stretch * ridge.kernel).astype(np.float32), (stretch * (ridge.bias - 0.5)).astype(np.float32)


def solve_number(features: np.ndarray, numbers: np.ndarray, chosen_on: Labelled | None = None) -> Head:
    """Solves a ridge regression of a number per image, [n, 1]. For the other arguments see `solve_head`."""
    ridge = solve_ridge(
        features, numbers, chosen_on, parts=_in_turn(numbers), encode=lambda numbers: numbers, cost=_squares
    )
    return ridge.kernel.astype(np.float32), ridge.bias.astype(np.float32)


def _in_turn(labels: np.ndarray) -> np.ndarray:
    return np.arange(len(labels)) % PARTS


def _misses(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(1) != labels).sum())


def _squares(outputs: np.ndarray, targets: np.ndarray) -> float:
    return float(((outputs - targets) ** 2).sum())


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    logits = logits - logits.max(1, keepdims=True)
    return float((np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]).mean())


def _binary(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((np.logaddexp(0, logits) - labels * logits).mean())
