"""Tests all metrics of the report against scikit-learn, scipy or the evaluator."""

import math

import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from report_records import figures_of
from sklearn import metrics
from sklearn.calibration import calibration_curve

from sft_jax.report import charts
from sft_jax.tasks import statistics
from sft_jax.tasks.classification import Classification
from sft_jax.tasks.classification_sums import eval_sums, summarize


def random_logits(n=4000, classes=7, sharpness=3.0, seed=0):
    """Returns logits, and labels drawn from the softmax of logits / `sharpness`."""
    generator = np.random.default_rng(seed)
    logits = (2 * sharpness * generator.normal(size=(n, classes))).astype(np.float32)
    chances = np.exp(logits / sharpness) / np.exp(logits / sharpness).sum(1, keepdims=True)
    labels = (generator.random((n, 1)) < chances.cumsum(1)).argmax(1).astype(np.int32)
    return logits, labels


def cross_entropy(logits, labels, temperature):
    return metrics.log_loss(labels, scipy.special.softmax(logits.astype(np.float64) / temperature, axis=1))


def slope(logits, labels, inverse):
    """Returns the derivative of the mean cross-entropy by 1 / temperature, which is 0 at the minimum."""
    expected = (scipy.special.softmax(logits.astype(np.float64) * inverse, axis=1) * logits).sum(1)
    return (expected - logits[np.arange(len(labels)), labels]).mean()


@given(st.integers(1, 10_000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_interval(counts):
    correct, total = counts
    low, high = statistics.wilson_interval(correct, total)
    proportion, weight = correct / total, scipy.special.ndtri(0.975) ** 2 / total
    centre = (proportion + weight / 2) / (1 + weight)
    half = math.sqrt(weight * (proportion * (1 - proportion) + weight / 4)) / (1 + weight)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-14)
    assert 0 <= low <= correct / total <= high <= 1
    assert (low == 0, high == 1) == (correct == 0, correct == total)


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_of_newcombes_examples(correct, total, low, high):
    """Newcombe, 1998, Statistics in Medicine 17, 857-872, table I, method 3."""
    assert statistics.wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_precision_recall_and_f1_match_scikit_learn():
    logits, truth = random_logits(500, classes=12)
    predictions = logits.argmax(1)
    entries = statistics.class_figures(metrics.confusion_matrix(truth, predictions, labels=range(12)))
    wanted = metrics.precision_recall_fscore_support(truth, predictions, labels=range(12))
    for values, own in zip(wanted, ("precision", "recall", "f1", "images"), strict=True):
        np.testing.assert_allclose([getattr(entry, own) for entry in entries], values, err_msg=own)
    assert statistics.mean_f1(entries) == pytest.approx(metrics.f1_score(truth, predictions, average="macro"))
    assert [entry.predicted for entry in entries] == np.bincount(predictions, minlength=12).tolist()


def test_classes_without_images_or_predictions_have_undefined_metrics():
    entries = statistics.class_figures(np.array([[3, 1, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]]))
    assert entries[0] == (4, 5, 3 / 5, 3 / 4, 6 / 9)
    assert entries[1] == (0, 1, 0.0, None, 0.0), "it has no image, and one was predicted as it"
    assert entries[2] == (2, 0, None, 0.0, 0.0), "no image was predicted as it"
    assert entries[3] == (0, 0, None, None, None)
    assert statistics.mean_f1(entries) == pytest.approx(6 / 9 / 3)


def test_metrics_of_one_class():
    assert statistics.class_figures(np.array([[5]])) == [(5, 5, 1.0, 1.0, 1.0)]
    assert statistics.confused_pairs(np.array([[5]]), 3) == []
    assert statistics.fit_temperature(np.ones((5, 1), np.float32), np.zeros(5, np.int32)) == 1.0


def test_the_most_confused_pairs():
    logits, truth = random_logits(300, classes=5)
    predictions = logits.argmax(1)
    confusion = metrics.confusion_matrix(truth, predictions, labels=range(5))
    pairs = statistics.confused_pairs(confusion, 4)
    assert all(((truth == pair.truth) & (predictions == pair.predicted)).sum() == pair.images for pair in pairs)
    assert all(pair.truth != pair.predicted for pair in pairs)
    others = [confusion[i, j] for i in range(5) for j in range(5) if i != j]
    assert [pair.images for pair in pairs] == sorted(others, reverse=True)[:4]
    assert statistics.confused_pairs(np.diag([3, 4]), 4) == [], "pairs without images are left out"


def test_the_most_confused_classes():
    confusion = np.diag([50, 50, 50, 50])
    confusion[3, 1] = 9
    confusion[0, 3] = 2
    assert statistics.confused_classes(confusion, 2) == [1, 3]
    assert statistics.confused_classes(confusion, 10) == [0, 1, 2, 3]


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_the_temperature_minimises_the_cross_entropy(sharpness, monkeypatch):
    monkeypatch.setattr(statistics, "CHUNK", 1500)  # the last chunk is shorter
    logits, labels = random_logits(sharpness=sharpness)
    temperature = statistics.fit_temperature(logits, labels)
    best = 1 / scipy.optimize.brentq(lambda inverse: slope(logits, labels, inverse), 1 / 20, 20)
    assert temperature == pytest.approx(best, rel=1e-7), "up to the rounding of float32 logits"
    assert cross_entropy(logits, labels, temperature) == pytest.approx(cross_entropy(logits, labels, best), rel=1e-14)
    assert temperature == pytest.approx(sharpness, rel=0.1), "the labels were drawn with it"


def test_the_temperature_has_bounds():
    logits = np.array([[3.0, 0.0], [0.0, 3.0]], np.float32)
    right, wrong = np.array([0, 1], np.int32), np.array([1, 0], np.int32)
    assert 0.05 <= statistics.fit_temperature(logits, right) < 0.1, "it is never wrong, so it cannot be overconfident"
    assert statistics.fit_temperature(logits, wrong) == pytest.approx(20.0)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_the_temperature_is_one_if_none_is_better(value):
    logits = np.full((6, 3), value, np.float32)
    assert statistics.fit_temperature(logits, np.arange(6) % 3) == 1.0


def test_a_temperature_changes_no_prediction_and_reduces_the_calibration_error():
    logits, labels = random_logits(sharpness=3.0)
    before = statistics.predict(logits)
    after = statistics.predict(logits, statistics.fit_temperature(logits, labels))
    np.testing.assert_array_equal(before.labels, after.labels)
    np.testing.assert_allclose(before.confidences, scipy.special.softmax(logits, axis=1).max(1), rtol=1e-5)
    errors = [statistics.reliability(each.confidences, each.labels == labels).ece for each in (before, after)]
    assert errors[1] < 0.03 < 0.1 < errors[0]


def test_reliability_agrees_with_the_evaluator():
    logits, labels = random_logits()
    predictions = statistics.predict(logits)
    bins = statistics.reliability(predictions.confidences, predictions.labels == labels)
    summary = figures_of(logits, labels)
    assert bins.ece == pytest.approx(summary["ece"], abs=1e-5)
    assert bins.counts.sum() == len(labels)
    assert np.average(bins.accuracies, weights=bins.counts) == pytest.approx(summary["accuracy"])
    # scikit-learn leaves empty bins out.
    wanted = {0: bins.accuracies, 1: bins.confidences}
    curves = calibration_curve(predictions.labels == labels, predictions.confidences, n_bins=len(bins.counts))
    for part, values in wanted.items():
        np.testing.assert_allclose(values[bins.counts > 0], curves[part], atol=1e-12)


def test_metrics_are_restored_from_results():
    logits, labels = random_logits(200)
    sums = jax.jit(eval_sums)(logits, labels, np.ones(len(labels), bool))
    back = Classification.figures_of(Classification(tuple("abcdefg")).results(summarize(sums)))
    assert back == summarize(sums) | {"class_names": list("abcdefg")}


@given(st.floats(-10, 10), st.floats(1e-3, 1e6), st.integers(3, 8))
def test_ticks_enclose_the_values(low, span, most):
    high = low + span
    ticks = charts.nice_ticks(low, high, most)
    assert ticks[0] <= low + 1e-6 * span
    assert ticks[-1] >= high - 1e-6 * span
    assert 2 <= len(ticks) <= most + 2


def test_a_chart_leaves_gaps_and_describes_itself():
    series = {"training": [(1, 2.0), (2, float("nan")), (3, 1.0), (4, 0.5)], "nothing": [(1, None)]}
    chart = charts.line_chart("Loss", series, "{:.1f}".format)
    line = chart.lines[0]
    assert [len(path.split()) for path in line.paths] == [2], "epoch 1 is isolated"
    assert [mark.text for mark in line.marks] == [
        "training, epoch 1: 2.0",
        "training, epoch 3: 1.0",
        "training, epoch 4: 0.5",
    ]
    assert line.marks[0].y < line.marks[1].y < line.marks[2].y, "SVG counts downwards"
    assert chart.described == "Loss, training: 2.0 in epoch 1, 0.5 in epoch 4"
    assert charts.line_chart("Loss", {"training": [(1, float("nan"))]}) is None
    long = charts.line_chart("Loss", {"training": [(epoch, 1 / epoch) for epoch in range(1, 300)]})
    assert not long.lines[0].marks
    assert len(long.lines[0].paths[0].split()) == 299
