"""Tests of the metrics of several labels and of numbers against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from sft_jax.tasks import label_statistics
from sft_jax.tasks.base import Kept
from sft_jax.tasks.multilabel import Multilabel
from sft_jax.tasks.regression import Regression


def drawn(seed, n=200, labels=6, *, ties=False):
    """Returns logits and labels; the last label occurs nowhere."""
    generator = np.random.default_rng(seed)
    truth = generator.random((n, labels)) < generator.uniform(0.05, 0.6, labels)
    truth[:, -1] = False
    logits = (generator.standard_normal((n, labels)) + truth).astype(np.float32)
    return np.round(logits) if ties else logits, truth


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_mean_average_precision_and_f1_match_scikit_learn(seed, ties):
    logits, truth = drawn(seed, ties=ties)
    task = Multilabel(tuple("abcdef"))
    figures = task.summarize(Kept(len(logits), logits, {"labels": truth.astype(np.uint8)}))
    wanted = metrics.average_precision_score(truth[:, :-1], logits[:, :-1], average=None)
    np.testing.assert_allclose(figures["per_class_ap"][:-1], wanted, rtol=1e-12)
    assert figures["per_class_ap"][-1] is None
    assert figures["map"] == pytest.approx(wanted.mean(), rel=1e-12)
    predicted = 1 / (1 + np.exp(-logits.astype(np.float64))) >= np.array(figures["thresholds"])
    per_class = metrics.f1_score(truth, predicted, average=None, zero_division=np.nan)
    assert figures["macro_f1"] == pytest.approx(np.nanmean(per_class), rel=1e-12)
    assert figures["micro_f1"] == pytest.approx(metrics.f1_score(truth, predicted, average="micro"), rel=1e-12)
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    wanted = metrics.log_loss(truth.ravel(), probabilities.ravel())
    assert figures["loss"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_the_thresholds_have_the_highest_f1(seed):
    logits, truth = drawn(seed, ties=seed == 2)
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    for scores, own in zip(probabilities.T[:-1], truth.T[:-1], strict=True):
        threshold = label_statistics.best_threshold(scores, own)
        all_of_them = [metrics.f1_score(own, scores >= value) for value in np.unique(scores)]
        assert metrics.f1_score(own, scores >= threshold) == max(all_of_them)
        assert np.abs(scores - threshold).min() > 0, "no image is on the threshold"
    assert label_statistics.best_threshold(probabilities[:, -1], truth[:, -1]) == 0.5


def test_the_order_of_images_makes_no_difference():
    logits, truth = drawn(0, ties=True)
    task, order = Multilabel(tuple("abcdef")), np.random.default_rng(1).permutation(len(logits))
    one, other = (
        task.summarize(Kept(len(logits), logits[rows], {"labels": truth[rows].astype(np.uint8)}))
        for rows in (np.arange(len(logits)), order)
    )
    assert one | {"loss": 0} == other | {"loss": 0}
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-12)


def test_thresholds_of_a_checkpoint_are_kept():
    logits, truth = drawn(0)
    kept = Kept(len(logits), logits, {"labels": truth.astype(np.uint8)})
    task = Multilabel(tuple("abcdef"))
    learnt = task.learnt(task.summarize(kept))
    again = task.with_learnt(learnt).summarize(kept._replace(outputs=logits - 3))
    assert again["thresholds"] == learnt["thresholds"]
    assert again["map"] == task.summarize(kept)["map"]
    assert again["macro_f1"] < task.summarize(kept)["macro_f1"]


@pytest.mark.parametrize("normalised", [True, False])
def test_errors_of_numbers_match_scikit_learn(normalised):
    generator = np.random.default_rng(0)
    truth = generator.normal(40, 7, 300).astype(np.float32)
    predicted = truth + generator.normal(0, 2, 300).astype(np.float32)
    task = Regression("age", 40.0, 7.0, normalised)
    outputs = ((predicted - 40) / 7 if normalised else predicted).astype(np.float32)[:, None]
    figures = task.summarize(Kept(300, outputs, {"number": truth}))
    assert figures["mae"] == pytest.approx(metrics.mean_absolute_error(truth, predicted), rel=1e-5)
    assert figures["rmse"] == pytest.approx(metrics.root_mean_squared_error(truth, predicted), rel=1e-5)
    assert figures["r2"] == pytest.approx(metrics.r2_score(truth, predicted), rel=1e-5)
    assert figures["loss"] == pytest.approx(metrics.mean_squared_error(truth, predicted) / 49, rel=1e-5)
    assert figures["count"] == 300


def test_r2_of_equal_numbers_is_as_in_scikit_learn():
    task, truth = Regression("age", 0.0, 1.0), np.full(4, 2, np.float32)
    for outputs in (truth[:, None], truth[:, None] + 1):
        figures = task.summarize(Kept(4, outputs, {"number": truth}))
        assert figures["r2"] == metrics.r2_score(truth, outputs[:, 0])
