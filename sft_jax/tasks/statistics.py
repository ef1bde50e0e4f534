"""Classification metrics: pure functions of confusion matrices and logits."""

import math
from typing import NamedTuple

import numpy as np

# Confidence bins of a reliability diagram.
CALIBRATION_BINS = 15
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
    # Imported late, because it takes a second and most commands do not need it.
    from scipy.stats import binomtest

    low, high = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    return low, high


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


def matthews(confusion: np.ndarray) -> float:
    """Computes Matthews' correlation of several classes as scikit-learn does; 0 if all labels or predictions agree."""
    table = confusion.astype(np.float64)
    truth, predicted, total = table.sum(1), table.sum(0), table.sum()
    spread = (total**2 - truth @ truth) * (total**2 - predicted @ predicted)
    return float((np.trace(table) * total - truth @ predicted) / np.sqrt(spread)) if spread > 0 else 0.0


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
    """Finds the temperature T within `TEMPERATURES` that minimises the cross-entropy of softmax(logits / T); 1 if no
    temperature is better (Guo et al., 2017, arXiv:1706.04599).

    Args:
      logits: [n, classes], of images that were not trained on.
      labels: int [n].
    """
    # Imported late: it takes a second, which most commands can spare.
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return _cross_entropy(logits, labels, math.exp(-log_temperature))

    # It has one minimum: the cross-entropy is convex in 1 / T.
    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-9})
    return math.exp(found.x) if found.fun < loss(0.0) else 1.0


def _cross_entropy(logits: np.ndarray, labels: np.ndarray, inverse: float) -> float:
    """The mean, of logits times `inverse`."""
    total = 0.0
    for part, own in zip(_chunks(logits), _chunks(labels), strict=True):
        scaled = _scaled(part, inverse)
        total += float((np.log(np.exp(scaled).sum(1)) - scaled[np.arange(len(part)), own]).sum())
    return total / len(logits)


def _softmax(logits: np.ndarray, inverse: float) -> np.ndarray:
    chances = np.exp(_scaled(logits, inverse))
    return chances / chances.sum(1, keepdims=True)


def _scaled(logits: np.ndarray, inverse: float) -> np.ndarray:
    """Logits times `inverse`, float64, of each row the largest 0."""
    return (logits - logits.max(1, keepdims=True)).astype(np.float64) * inverse


def _chunks(table: np.ndarray) -> list[np.ndarray]:
    return [table[first : first + CHUNK] for first in range(0, len(table), CHUNK)]


def _ratio(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
