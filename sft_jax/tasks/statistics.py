"""Classification metrics: pure functions of confusion matrices and logits."""

import math
from typing import NamedTuple

import numpy as np

# Confidence bins of a reliability diagram.
CALIBRATION_BINS = 15
# Half-width of the central 95 % interval of a standard normal distribution.
Z_95 = 1.959963984540054
TEMPERATURES = (0.05, 20.0)
# Rows of logits converted to double precision at a time: 32 MiB with 1,000 classes.
CHUNK = 4096


class ClassFigures(NamedTuple):
    """Metrics of a class: its images, predictions, precision, recall and F1 (None: division by zero)."""

    images: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None


class Predictions(NamedTuple):
    """Predicted labels, int [n], and their probabilities, float64 [n]."""

    labels: np.ndarray
    confidences: np.ndarray


class Reliability(NamedTuple):
    """Per confidence bin: images, mean confidence and accuracy (0 in empty bins); and the calibration error."""

    counts: np.ndarray
    confidences: np.ndarray
    accuracies: np.ndarray
    ece: float


class Pair(NamedTuple):
    """The number of images of class `truth` that were classified as `predicted`."""

    truth: int
    predicted: int
    images: int


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Returns the 95 % confidence interval of `correct` / `total` (Wilson, 1927, doi:10.2307/2276774)."""
    fraction, weight = correct / total, Z_95**2 / total
    centre = (fraction + weight / 2) / (1 + weight)
    half = Z_95 * math.sqrt(fraction * (1 - fraction) / total + weight / (4 * total)) / (1 + weight)
    # Exactly 0 and 1 at the ends, where rounding errors of 1e-17 remain.
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == total else centre + half)


def class_figures(confusion: np.ndarray) -> list[ClassFigures]:
    """Computes precision, recall and F1 per class from a confusion matrix int [classes, classes] (rows: truth)."""
    images, predicted, hits = confusion.sum(1), confusion.sum(0), np.diag(confusion)
    return [
        ClassFigures(int(own), int(named), _ratio(hit, named), _ratio(hit, own), _ratio(2 * hit, own + named))
        for own, named, hit in zip(images, predicted, hits, strict=True)
    ]


def balanced_accuracy(confusion: np.ndarray) -> float:
    """Computes the mean recall over the classes that have images."""
    images = confusion.sum(1)
    there = images > 0
    return float((np.diag(confusion)[there] / images[there]).mean())


def is_unequal(confusion: np.ndarray) -> bool:
    """Returns whether some class has at least twice as many images as another, so that accuracy neglects the latter."""
    images = confusion.sum(1)
    return bool(images.max() >= 2 * images[images > 0].min())


def mean_f1(figures: list[ClassFigures]) -> float:
    """Computes the mean F1 over the classes for which it is defined (macro F1)."""
    return float(np.mean([entry.f1 for entry in figures if entry.f1 is not None]))


def confused_pairs(confusion: np.ndarray, top: int) -> list[Pair]:
    """Returns at most `top` confusions that occurred, the most frequent first."""
    errors = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-errors, axis=None, kind="stable")[:top]
    pairs = [Pair(*divmod(int(place), len(errors)), images=int(errors.flat[place])) for place in order]
    return [pair for pair in pairs if pair.images]


def confused_classes(confusion: np.ndarray, top: int) -> list[int]:
    """Returns the `top` classes with the most errors (false negatives and false positives), in label order."""
    errors = confusion.sum(0) + confusion.sum(1) - 2 * np.diag(confusion)
    return sorted(int(label) for label in np.argsort(-errors, kind="stable")[:top])


def predict(logits: np.ndarray, temperature: float = 1.0) -> Predictions:
    """Returns the most probable class of logits [n, classes] / `temperature`, and its probability."""
    labels = logits.argmax(1)
    confidences = np.concatenate([_softmax(part, 1 / temperature).max(1) for part in _chunks(logits)])
    return Predictions(labels, confidences)


def reliability(confidences: np.ndarray, correct: np.ndarray, bins: int = CALIBRATION_BINS) -> Reliability:
    """Computes accuracy against confidence in equal bins, and the expected calibration error.

    That error is the mean gap between the two, weighted by images (Guo et al., 2017, arXiv:1706.04599).

    Args:
      confidences: [n], probabilities of the predicted classes.
      correct: bool [n].
      bins: number of bins.
    """
    bin_of = np.clip((confidences * bins).astype(np.int64), 0, bins - 1)
    counts = np.bincount(bin_of, minlength=bins)
    sums = [np.bincount(bin_of, weights=values, minlength=bins) for values in (confidences, correct)]
    confidence, accuracy = (total / np.maximum(counts, 1) for total in sums)
    return Reliability(counts, confidence, accuracy, float(np.abs(sums[0] - sums[1]).sum() / counts.sum()))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Finds the temperature T within `TEMPERATURES` that minimises the cross-entropy of softmax(logits / T).

    See Guo et al., 2017, arXiv:1706.04599. The cross-entropy is convex in 1 / T; the zero of its slope is found by
    Newton's method within a shrinking bracket.

    Args:
      logits: [n, classes], of images that were not trained on.
      labels: int [n].
    """
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    inverse = 1.0
    for _ in range(60):
        slope, curvature = _slope(logits, labels, inverse)
        if slope > 0:
            high = inverse
        else:
            low = inverse
        step = inverse - slope / curvature if curvature > 0 else inverse
        new = step if low < step < high else math.sqrt(low * high)
        if slope == 0 or abs(new - inverse) <= 1e-9 * inverse:
            break
        inverse = new
    return 1 / inverse


def _slope(logits: np.ndarray, labels: np.ndarray, inverse: float) -> tuple[float, float]:
    """Computes the first and second derivative of the mean cross-entropy with respect to 1 / T."""
    slope = curvature = 0.0
    for part, own in zip(_chunks(logits), _chunks(labels), strict=True):
        chances = _softmax(part, inverse)
        mean = (chances * part).sum(1)
        slope += float((mean - part[np.arange(len(part)), own]).sum())
        curvature += float(((chances * (part - mean[:, None]) ** 2).sum(1)).sum())
    return slope / len(logits), curvature / len(logits)


def _softmax(logits: np.ndarray, inverse: float) -> np.ndarray:
    scaled = (logits - logits.max(1, keepdims=True)).astype(np.float64) * inverse
    np.exp(scaled, out=scaled)
    return scaled / scaled.sum(1, keepdims=True)


def _chunks(table: np.ndarray) -> list[np.ndarray]:
    return [table[first : first + CHUNK] for first in range(0, len(table), CHUNK)]


def _ratio(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
