"""Tests of the estimate of a run's time."""

from sft_jax.run.pace import Pace
from sft_jax.run.progress import Progress


def test_the_time_is_told_once_without_the_first_call():
    pace = Pace(epochs=4, steps_per_epoch=100)
    calls = [(10, 30.0), (20, 36.0), (30, 42.0), (60, 60.0)]
    assert [pace.line(Progress(epoch_steps=steps, epoch_seconds=seconds)) for steps, seconds in calls] == [
        None,
        None,
        "time       about 1:00 per epoch, 4:00 in total, without validation (from 20 steps)",
        None,
    ]


def test_a_single_call_has_no_estimate():
    assert Pace(epochs=4, steps_per_epoch=10).line(Progress(epoch_steps=10, epoch_seconds=30.0)) is None
