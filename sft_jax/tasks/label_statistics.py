"""Metrics of several labels per image: pure functions of scores, in float64, independent of the order of images."""

import numpy as np


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """Computes the average precision of one label, as scikit-learn's `average_precision_score`.

    It is the sum over distinct scores of the precision of the images with at least that score, times the gain in
    recall.

    Args:
      scores: [n].
      truth: [n], 1 for images that have the label.

    Returns:
      the average precision; None if no image has the label.
    """
    hits, named = _at_least(scores, truth)[1:]
    if not truth.any():
        return None
    gained = np.diff(hits, prepend=0)
    return float((gained * (hits / named)).sum() / hits[-1])


def best_threshold(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Finds the threshold of probabilities [n] at which F1 is highest: half-way between two distinct ones.

    Ties go to the higher threshold. Without images that have the label it is 0.5.
    """
    if not truth.any():
        return 0.5
    distinct, hits, named = _at_least(probabilities, truth)
    f1 = 2 * hits / (named + int(truth.sum()))
    best = int(np.argmax(f1))
    below = distinct[best + 1] if best + 1 < len(distinct) else 0.0
    return float((distinct[best] + below) / 2)


def f1_scores(predicted: np.ndarray, truth: np.ndarray) -> list[float | None]:
    """Computes the F1 of each label from bool [n, labels]; None where no image has the label or was given it."""
    hits, both = (predicted & truth).sum(0), predicted.sum(0) + truth.sum(0)
    return [2 * int(hit) / int(total) if total else None for hit, total in zip(hits, both, strict=True)]


def mean(values: list[float | None]) -> float | None:
    """Returns the mean of the values that are not None; None without any."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _at_least(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns distinct scores in descending order, and the images with at least these: with the label, and all."""
    order = np.argsort(-scores, kind="stable")
    descending = scores[order].astype(np.float64)
    last = np.append(np.flatnonzero(np.diff(descending)), len(descending) - 1)
    return descending[last], np.cumsum(truth[order], dtype=np.int64)[last], last + 1
