"""Tests of class-balanced sampling: which images an epoch draws (data.balance)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import TINY, one_device

from sft_jax.config import complete
from sft_jax.data import Dataset
from sft_jax.data.dataset import ArraySplit
from sft_jax.data.sampling import BALANCE, epoch_order
from sft_jax.training.experiment import Experiment
from sft_jax.training.plan import plan_lines

# 110 images of two classes; a third class has none.
LABELS = np.array([0] * 100 + [2] * 10, np.int32)


def test_without_balance_every_image_is_drawn_once():
    """The order is that of earlier versions."""
    order = epoch_order(3, 1, LABELS, 10, "none")
    np.testing.assert_array_equal(np.sort(order.ravel()), np.arange(110))
    np.testing.assert_array_equal(order, epoch_order(3, 1, np.zeros(110, int), 10))


@pytest.mark.parametrize(
    ("balance", "fractions"), [("full", (0.5, 0, 0.5)), ("sqrt", (10**0.5 / (1 + 10**0.5), 0, 1 / (1 + 10**0.5)))]
)
def test_classes_are_drawn_equally_often_or_by_the_root_of_their_size(balance, fractions):
    order = epoch_order(0, 0, LABELS, 10, balance)
    assert order.shape == (11, 10), "as many steps as without"
    np.testing.assert_allclose(np.bincount(LABELS[order.ravel()], minlength=3) / 110, fractions, atol=1 / 110)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=120),
    st.integers(1, 30),
    st.sampled_from(["sqrt", "full"]),
    st.integers(0, 3),
)
def test_images_of_a_class_are_drawn_equally_often_within_one_draw(labels, batch_size, balance, seed):
    """Within an epoch, and over all epochs so far."""
    labels = np.array(labels)
    if len(labels) < batch_size:
        return
    so_far = np.zeros(len(labels), int)
    for epoch in range(4):
        order = epoch_order(seed, epoch, labels, batch_size, balance)
        drawn = np.bincount(order.ravel(), minlength=len(labels))
        so_far += drawn
        assert drawn.sum() == order.size == len(labels) // batch_size * batch_size
        for label in set(labels.tolist()):
            assert np.ptp(drawn[labels == label]) <= 1
            assert np.ptp(so_far[labels == label]) <= 1
        present = np.bincount(labels) > 0
        weights = np.bincount(labels)[present] ** BALANCE[balance]
        wanted = order.size * weights / weights.sum()
        assert (np.abs(np.bincount(labels[order.ravel()], minlength=len(present))[present] - wanted) < 1).all()


def test_a_balanced_order_is_a_function_of_seed_and_epoch():
    """A resumed run continues where it stopped."""
    one = epoch_order(3, 7, LABELS, 10, "full")
    np.testing.assert_array_equal(one, epoch_order(3, 7, LABELS, 10, "full"))
    for seed, epoch in [(3, 8), (4, 7)]:
        assert (one != epoch_order(seed, epoch, LABELS, 10, "full")).mean() > 0.8


def test_the_average_draws_of_an_image_are_reported():
    images = ArraySplit.of_images(np.zeros((110, 16, 16, 3), np.uint8), LABELS)
    config = complete(TINY | {"batch_size": 10, "data.balance": "full"})
    experiment = Experiment(config, Dataset(images, images, images, ("ant", "bee", "cat")), one_device())
    assert (
        "           average draws of an image per epoch: 0.55 for ant (100 images), 5.5 for cat (10 images) "
        "(data.balance=full)"
    ) in plan_lines(experiment, "random weights")
    assert (np.bincount(LABELS[experiment.order(2).ravel()]) == [55, 0, 55]).all()
