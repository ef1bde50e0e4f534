"""Tests of the arithmetic of `sft_jax.fit.budget`: plans fit into the time, and use it."""

import pytest

from sft_jax.fit.budget import NEAR, WORTH, Plan, Work, planned
from sft_jax.fit.costs import Costs

COSTS = Costs(size=128, start=1.0, compile=20.0, step=0.3, evaluation_compile=4.0, image=0.002, is_guess=False)
WORK = Work(train=3200, validation=400, test=400, batch=32, views=2, read=5.0)
SIZES = [192, *range(184, 63, -8)]
RULES = {"fewest": 3, "most": 30, "head": True}


def test_epochs_are_those_that_fit():
    for seconds in range(60, 2000, 37):
        epochs = WORK.epochs(COSTS, seconds)
        if epochs >= 0:
            assert WORK.seconds(COSTS, epochs) <= seconds
        assert WORK.seconds(COSTS, epochs + 1) > seconds


def test_the_costs_of_another_size_follow_its_pixels():
    half = COSTS.at(64)
    assert (half.step, half.image) == pytest.approx((0.075, 0.0005))
    assert (half.compile, half.evaluation_compile) == (COSTS.compile, COSTS.evaluation_compile)
    assert COSTS.at(128) == COSTS


def test_a_program_that_is_kept_is_not_compiled_again():
    kept = COSTS._replace(kept=5)
    assert WORK.seconds(COSTS, 5) - WORK.seconds(kept, 5) == COSTS.compile
    assert WORK.seconds(COSTS, 6) == WORK.seconds(kept, 6)
    assert WORK.epochs(kept, WORK.seconds(kept, 5)) == 5
    assert WORK.epochs(COSTS, WORK.seconds(kept, 5)) < 5
    assert WORK.epochs(kept, WORK.seconds(kept, 9)) == 9
    assert COSTS._replace(kept=5).at(64).kept == 0


@pytest.mark.parametrize("minutes", [4, 5, 6, 8, 10, 15, 20])
def test_the_time_is_used(minutes):
    seconds = 60 * minutes
    plan = planned(WORK, COSTS, SIZES, seconds, **RULES)
    assert plan.epochs >= 3
    assert 0.9 * seconds < WORK.seconds(COSTS.at(plan.size), plan.epochs) <= seconds
    largest = next(size for size in SIZES if WORK.epochs(COSTS.at(size), seconds) >= 3)
    assert NEAR * largest <= plan.size <= largest


def test_with_more_time_than_is_of_use_the_run_is_shorter():
    assert planned(WORK, COSTS, SIZES, 100_000, **RULES) == Plan(192, 30)


def test_without_time_for_the_fewest_epochs_the_head_alone_is_trained_at_the_largest_size():
    costs = COSTS._replace(step=1.0, image=0.01)
    seconds = WORK.seconds(costs.at(192), 0) + 1
    assert planned(WORK, costs, SIZES, seconds, **RULES) == Plan(192, 0)
    smaller = next(size for size in SIZES if WORK.epochs(costs.at(size), seconds) >= 3)
    assert smaller < WORTH * 192, "everything could be trained, but at a much smaller size"
    found = planned(WORK, costs, SIZES, seconds, fewest=3, most=30, head=False)
    assert NEAR * smaller <= found.size <= smaller
    assert found.epochs >= 3


def test_with_too_little_time_there_is_no_plan():
    assert planned(WORK, COSTS, SIZES, 20, **RULES) is None


def test_few_images_train_the_head_alone():
    assert planned(WORK, COSTS, SIZES, 2000, fewest=3, most=0, head=True) == Plan(192, 0)
