"""Tests of the closed-form head, against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from sft_jax.tasks import linear_probe, ridge
from sft_jax.tasks.linear_probe import solve_head


def blobs(count, seed, channels=20, classes=4):
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(classes, channels))
    labels = generator.integers(0, classes, count)
    return (3 + centres[labels] + generator.normal(size=(count, channels))).astype(np.float32), labels


def test_the_head_is_a_ridge_regression(monkeypatch):
    monkeypatch.setattr(ridge, "PENALTIES", np.array([0.1]))
    monkeypatch.setattr(linear_probe, "STRETCHES", np.array([2.0]))
    features, labels = blobs(300, 1)
    kernel, bias = solve_head(features[:, None], labels, 4, blobs(100, 2))
    mean_eigenvalue = np.var(features.astype(np.float64), axis=0).mean()
    theirs = Ridge(alpha=0.1 * mean_eigenvalue * len(features)).fit(features.astype(np.float64), np.eye(4)[labels])
    np.testing.assert_allclose(kernel, 2 * theirs.coef_.T, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(bias, 2 * theirs.intercept_, rtol=1e-5)


def test_validation_images_select_penalty_and_stretch():
    features, labels = blobs(60, 1, channels=50)
    validation = blobs(2000, 2, channels=50)
    kernel, bias = solve_head(features[:, None], labels, 4, validation)

    def accuracy(kernel, bias):
        return ((validation[0] @ kernel + bias).argmax(1) == validation[1]).mean()

    without = Ridge(alpha=1e-9).fit(features, np.eye(4)[labels])
    assert accuracy(kernel, bias) > accuracy(without.coef_.T, without.intercept_) + 0.03
    logits = validation[0] @ kernel + bias
    losses = [linear_probe._cross_entropy(factor * logits, validation[1]) for factor in (0.8, 1.0, 1.25)]
    assert min(losses) == losses[1], "neither over- nor underconfident"


def test_without_validation_images_the_training_images_are_cross_validated():
    """It is as good as with held-out images, and better than with a fixed penalty."""
    features, labels = blobs(60, 1, channels=50)
    validation = blobs(2000, 2, channels=50)

    def accuracy(kernel, bias):
        return ((validation[0] @ kernel + bias).argmax(1) == validation[1]).mean()

    chosen, best = (accuracy(*solve_head(features[:, None], labels, 4, on)) for on in (None, validation))
    without = Ridge(alpha=1e-9).fit(features, np.eye(4)[labels])
    assert accuracy(without.coef_.T, without.intercept_) + 0.03 < chosen <= best
    assert chosen > best - 0.02


@pytest.mark.parametrize("count", [2, 4, 7])
def test_a_few_images_are_enough(count):
    features, labels = blobs(count, 1)
    kernel, bias = solve_head(features[:, None], labels, 4)
    assert np.isfinite(kernel).all()
    assert np.isfinite(bias).all()


def test_the_views_of_an_image_stay_together():
    """Held-out views of training images would select a penalty that is far too weak."""
    features, labels = blobs(60, 1, channels=50)
    twice = np.stack([features, features], 1)
    for one, other in zip(solve_head(twice, labels, 4), solve_head(features[:, None], labels, 4), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("degenerate", ["a constant feature", "fewer images than features"])
def test_degenerate_features_give_a_finite_head(degenerate):
    features, labels = blobs(10, 1)
    if degenerate == "a constant feature":
        features[:, 0] = 7
    kernel, bias = solve_head(features[:, None], labels, 4, blobs(50, 2))
    assert np.isfinite(kernel).all()
    assert np.isfinite(bias).all()
