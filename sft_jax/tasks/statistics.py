"""Figures of classification: pure functions of confusion matrices and logits."""

import math
from typing import NamedTuple

import numpy as np

# Bins of confidence of a reliability diagram.
CALIBRATION_BINS = 15
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
    # Imported late: it takes a second, which most commands can spare.
    from scipy.stats import binomtest

    low, high = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    return low, high


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
    al., 2017, arXiv:1706.04599); 1 where none has a lower one.

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


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
