"""Tests that training processes killed at any moment resume where they stopped."""

import signal

import numpy as np
import pytest
from counted import counts
from killed_runs import Program, results_of
from mask_folders import parts
from mask_runs import SETTINGS as SEGMENTATION
from tiny_runs import assert_same_run, state_of

from sft_jax.run.folder import Run

KINDS = ("training", "evaluation", "save", "report")


def interrupt_and_resume(program, ends, seed):
    """Interrupts a run once for each (kind, signal) of `ends`, at an event drawn with `seed`, resumes it to the end
    and compares it with an uninterrupted run.
    """
    events = program.run_uninterrupted()
    random = np.random.default_rng(seed)
    for kind, ending in ends:
        # Half of the signals are sent at once, half up to 50 ms later, wherever the process is by then.
        seconds = random.choice([0.0, random.uniform(0, 0.05)])
        end = f"{kind}:{random.integers(1, events[kind] + 1)}:{seconds:.4f}:{ending.name}"
        code, error = program.run("ended", "--resume", END=end)
        assert code == (-signal.SIGKILL if ending == signal.SIGKILL else 4), (end, error)
        if ending == signal.SIGKILL:
            assert error == ""
        else:
            first, second = error.splitlines()
            assert first == "stopping after the current step; interrupt again to stop immediately without saving"
            step = state_of(program.place / "ended").step
            assert second.startswith(f"stopped by {ending.name} after step {step}; the state is saved, add --resume")
    assert program.run("ended", "--resume") == (0, "")

    ended, whole = program.place / "ended", program.place / "whole"
    assert_same_run(ended, whole)
    assert results_of(ended) == results_of(whole)
    best, wanted = (Run(folder).checkpoints.restore("best") for folder in (ended, whole))
    assert best.step == wanted.step
    for key, array in wanted.arrays.items():
        np.testing.assert_array_equal(best.arrays[key], array, err_msg=key, strict=True)
    assert "</html>" in (ended / "report.html").read_text()
    # Interrupted saves and reports leave no files behind.
    assert {path.name for path in ended.iterdir()} == {path.name for path in whole.iterdir()}
    for name in ("latest", "best"):
        assert len(list((ended / "checkpoints" / name).iterdir())) == len(
            list((whole / "checkpoints" / name).iterdir())
        )


KILLS = [(kind, signal.SIGKILL) for kind in KINDS]
STOPS = [("training", signal.SIGTERM), ("evaluation", signal.SIGINT)]


@pytest.mark.long
@counts(kills=len(KILLS), stops=len(STOPS))
def test_a_run_interrupted_anywhere_resumes_bit_identically(tmp_path):
    with Program(tmp_path, epochs=5) as program:
        interrupt_and_resume(program, KILLS + STOPS, seed=0)


@pytest.mark.slow
@counts(kills=len(KILLS), stops=1)
def test_a_run_on_masks_interrupted_anywhere_resumes_bit_identically(tmp_path):
    changes = SEGMENTATION | {"data__source": f"masks:{parts(tmp_path / 'set')}", "model__stem": "imagenet"}
    with Program(tmp_path, epochs=5, **changes) as program:
        interrupt_and_resume(program, [*KILLS, STOPS[0]], seed=0)


MORE_STOPS = [(kind, number) for kind in KINDS[:3] for number in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@counts(kills=5 * len(KILLS), stops=len(MORE_STOPS))
def test_a_run_interrupted_many_times_resumes_bit_identically(tmp_path, seed):
    ends = 5 * KILLS + MORE_STOPS
    order = np.random.default_rng(seed).permutation(len(ends))
    with Program(tmp_path, epochs=20) as program:
        interrupt_and_resume(program, [ends[index] for index in order], seed)
