"""Tests of the losses of several labels and of numbers against torch, torchvision and timm."""

import jax
import numpy as np
import pytest
import torch
from timm.loss import AsymmetricLossMultiLabel
from torchvision.ops import sigmoid_focal_loss

from sft_jax.tasks import losses

RNG = np.random.default_rng(0)
LOGITS = (4 * RNG.standard_normal((7, 5))).astype(np.float32)
LABELS = RNG.integers(0, 2, (7, 5)).astype(np.float32)
LOGITS[0], LABELS[0] = (-30, 30, -3, 3, 0), (0, 1, 1, 0, 1)


def compare(ours, theirs):
    """Compares the sum of a loss, and its gradient."""
    value, gradient = jax.value_and_grad(lambda logits: ours(logits, LABELS).sum())(LOGITS)
    logits = torch.tensor(LOGITS, requires_grad=True)
    wanted = theirs(logits, torch.tensor(LABELS))
    wanted.backward()
    np.testing.assert_allclose(value, wanted.detach(), rtol=1e-5)
    np.testing.assert_allclose(gradient, logits.grad, rtol=2e-4, atol=1e-6)


def test_binary_cross_entropy_matches_torch():
    function = torch.nn.functional.binary_cross_entropy_with_logits
    compare(losses.binary_cross_entropy, lambda logits, labels: function(logits, labels, reduction="sum"))


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, 0.6), (1.5, None)])
def test_the_focal_loss_matches_torchvision(gamma, alpha):
    compare(
        lambda logits, labels: losses.focal(logits, labels, gamma=gamma, alpha=alpha),
        lambda logits, labels: sigmoid_focal_loss(
            logits, labels, alpha=-1 if alpha is None else alpha, gamma=gamma, reduction="sum"
        ),
    )


@pytest.mark.parametrize(("positive", "negative", "clip"), [(1.0, 4.0, 0.05), (0.0, 2.0, 0.0), (0.0, 0.0, 0.2)])
def test_the_asymmetric_loss_matches_timm(positive, negative, clip):
    theirs = AsymmetricLossMultiLabel(gamma_neg=negative, gamma_pos=positive, clip=clip)
    compare(
        lambda logits, labels: losses.asymmetric(
            logits, labels, gamma_positive=positive, gamma_negative=negative, clip=clip
        ),
        # Image by image, because releases of timm differ in whether they divide by their number.
        lambda logits, labels: sum(theirs(*row) for row in zip(logits[:, None], labels[:, None], strict=True)),
    )


def test_gradients_are_finite_where_probabilities_are_0_or_1():
    logits, labels = np.array([[-200.0, 200.0, -200.0, 200.0]], np.float32), np.array([[0, 0, 1, 1]], np.float32)
    for loss in (
        lambda logits: losses.focal(logits, labels, gamma=2.0, alpha=0.25),
        lambda logits: losses.asymmetric(logits, labels, gamma_positive=1.0, gamma_negative=4.0, clip=0.05),
        lambda logits: losses.asymmetric(logits, labels, gamma_positive=0.0, gamma_negative=1.0, clip=0.0),
    ):
        value, gradient = jax.value_and_grad(lambda logits, loss=loss: loss(logits).sum())(logits)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("kind", "function"), [("squared", "mse_loss"), ("absolute", "l1_loss"), ("huber", "huber_loss")]
)
def test_losses_of_numbers_match_torch(kind, function):
    errors = np.array([-3, -1, -0.2, 0, 0.7, 1, 9], np.float32)
    wanted = getattr(torch.nn.functional, function)(torch.tensor(errors), torch.zeros(7), reduction="none")
    np.testing.assert_allclose(losses.distance(errors, kind), wanted, rtol=1e-6)
