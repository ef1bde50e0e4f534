"""Figures of classification: pure functions of confusion matrices and logits."""

import math
from typing import NamedTuple

import numpy as np

# Bins of confidence of a reliability diagram.
CALIBRATION_BINS = 15
# Of a normal distribution, 95 % within.
Z_95 = 1.959963984540054
TEMPERATURES = (0.05, 20.0)
# Rows of logits that are in double precision at the same time: 32 MiB with 1,000 classes.
CHUNK = 4096


class ClassFigures(NamedTuple):
    """Of one class: its images, how many images were taken for it, and shares (None: nothing to divide by)."""

    images: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None


class Predictions(NamedTuple):
    """Of each image: the predicted label, int [n], and its probability, float64 [n]."""

    labels: np.ndarray
    confidences: np.ndarray


class Reliability(NamedTuple):
    """Per bin of confidence: images, mean confidence and accuracy (0 in empty bins); and the calibration error."""

    counts: np.ndarray
    confidences: np.ndarray
    accuracies: np.ndarray
    ece: float


class Pair(NamedTuple):
    """Images of the class `truth` that were taken for `predicted`."""

    truth: int
    predicted: int
    images: int


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share of which `correct` of `total` were seen (Wilson, 1927, doi:10.2307/2276774)."""
    share, weight = correct / total, Z_95**2 / total
    centre = (share + weight / 2) / (1 + weight)
    half = Z_95 * math.sqrt(share * (1 - share) / total + weight / (4 * total)) / (1 + weight)
    # Exactly 0 and 1 at the ends, where rounding leaves 1e-17.
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == total else centre + half)


def class_figures(confusion: np.ndarray) -> list[ClassFigures]:
    """Precision, recall and F1 of each class, from a confusion matrix int [classes, classes] (rows: truth)."""
    images, predicted, hits = confusion.sum(1), confusion.sum(0), np.diag(confusion)
    return [
        ClassFigures(int(own), int(said), _share(hit, said), _share(hit, own), _share(2 * hit, own + said))
        for own, said, hit in zip(images, predicted, hits, strict=True)
    ]


def balanced_accuracy(confusion: np.ndarray) -> float:
    """The mean, over the classes that have images, of the share of these that was recognised (recall)."""
    images = confusion.sum(1)
    there = images > 0
    return float((np.diag(confusion)[there] / images[there]).mean())


def is_unequal(confusion: np.ndarray) -> bool:
    """Whether a class has twice as many images as another one that has some: accuracy says little of that one then."""
    images = confusion.sum(1)
    return bool(images.max() >= 2 * images[images > 0].min())


def mean_f1(figures: list[ClassFigures]) -> float:
    """The mean of F1 over the classes that have any (macro F1)."""
    return float(np.mean([entry.f1 for entry in figures if entry.f1 is not None]))


def confused_pairs(confusion: np.ndarray, top: int) -> list[Pair]:
    """The `top` most frequent mistakes, the most frequent first, none that never happened."""
    errors = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-errors, axis=None, kind="stable")[:top]
    pairs = [Pair(*divmod(int(place), len(errors)), images=int(errors.flat[place])) for place in order]
    return [pair for pair in pairs if pair.images]


def confused_classes(confusion: np.ndarray, top: int) -> list[int]:
    """The `top` classes with the most mistakes, of their own images and of others taken for them, in their order."""
    errors = confusion.sum(0) + confusion.sum(1) - 2 * np.diag(confusion)
    return sorted(int(label) for label in np.argsort(-errors, kind="stable")[:top])


def predict(logits: np.ndarray, temperature: float = 1.0) -> Predictions:
    """The most probable class of logits [n, classes], divided by `temperature`, and its probability."""
    labels = logits.argmax(1)
    confidences = np.concatenate([_softmax(part, 1 / temperature).max(1) for part in _chunks(logits)])
    return Predictions(labels, confidences)


def reliability(confidences: np.ndarray, correct: np.ndarray, bins: int = CALIBRATION_BINS) -> Reliability:
    """Accuracy against confidence in `bins` equal bins, and the expected calibration error: the mean gap between the
    two, weighted by images (Guo et al., 2017, arXiv:1706.04599).

    Args:
      confidences: [n], of the predicted classes.
      correct: bool [n].
      bins: how many.
    """
    bin_of = np.clip((confidences * bins).astype(np.int64), 0, bins - 1)
    counts = np.bincount(bin_of, minlength=bins)
    sums = [np.bincount(bin_of, weights=values, minlength=bins) for values in (confidences, correct)]
    confidence, accuracy = (total / np.maximum(counts, 1) for total in sums)
    return Reliability(counts, confidence, accuracy, float(np.abs(sums[0] - sums[1]).sum() / counts.sum()))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T, within `TEMPERATURES`, with which softmax(logits / T) has the lowest cross-entropy (Guo et
    al., 2017, arXiv:1706.04599).

    The cross-entropy is convex in 1 / T: its slope's zero is found by Newton's method within a shrinking bracket.

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
    """First and second derivative, in 1 / T, of the mean cross-entropy."""
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


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
