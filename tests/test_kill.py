"""Real training processes that end in the middle of whatever they do, and go on where they were."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from counted import counts
from tiny_runs import TINY, assert_same_run, state_of

from sft_jax.runs import Run

PROGRAM = Path(__file__).with_name("tiny_program.py")
# Saved after every step; on one device, as a process of its own sees it.
SETTINGS = TINY | {"epochs": 5, "limit_train_examples": 192, "limit_eval_examples": 150, "save_minutes": 1e-9}
KINDS = ("training", "evaluation", "save", "report")


class Program:
    """The program on one recipe, whose folders lie in `place`."""

    def __init__(self, place, epochs):
        self.place, self.epochs = place, epochs
        recipe, settings = place / "recipe.py", SETTINGS | {"epochs": epochs}
        recipe.write_text(f"from sft_jax.config import complete\ndef get_config(arg=''): return complete({settings})\n")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = os.environ | {"XLA_FLAGS": "", "SFT_JAX_CACHE": str(place / "cache")}
        self._server = subprocess.Popen([sys.executable, str(PROGRAM)], env=environment, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.kill()
        self._server.communicate()

    def start(self, name, *flags, **environment):
        """Starts it; `finish` is to be called before the next start."""
        arguments = ["--config", str(self.place / "recipe.py"), "--workdir", str(self.place / name), *flags]
        print(json.dumps([arguments, environment]), file=self._server.stdin, flush=True)

    def finish(self):
        """Waits for its end: exit code, stdout, stderr."""
        return json.loads(self._server.stdout.readline())

    def run(self, name, *flags, **environment):
        """Its exit code and what it printed on stderr."""
        self.start(name, *flags, **environment)
        code, _, error = self.finish()
        return code, error

    def whole(self):
        """A run that nothing ends; returns how many moments of each kind it has an epoch."""
        counts = self.place / "moments.json"
        assert self.run("whole", MOMENTS=str(counts)) == (0, "")
        return {kind: count // self.epochs for kind, count in json.loads(counts.read_text()).items()}


def results_of(folder):
    return Run(folder).results() | {"seconds": 0}


def end_and_resume(program, ends, seed):
    """Ends a run once for each (kind, signal) of `ends` at a moment drawn with `seed`, resumes it to its end and
    compares it with one that was never ended.
    """
    moments = program.whole()
    random = np.random.default_rng(seed)
    for kind, ending in ends:
        # Half of them at once, half up to 50 ms later, wherever the process is then.
        seconds = random.choice([0.0, random.uniform(0, 0.05)])
        end = f"{kind}:{random.integers(1, moments[kind] + 1)}:{seconds:.4f}:{ending.name}"
        code, error = program.run("ended", "--resume", END=end)
        assert code == (-signal.SIGKILL if ending == signal.SIGKILL else 4), (end, error)
        if ending == signal.SIGKILL:
            assert error == ""
        else:
            first, second = error.splitlines()
            assert first == "stopping after the step under way; once more to stop at once, without saving"
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
    # Nothing of the saves and reports that were cut short is left.
    assert {path.name for path in ended.iterdir()} == {path.name for path in whole.iterdir()}
    for name in ("latest", "best"):
        assert len(list((ended / "checkpoints" / name).iterdir())) == len(
            list((whole / "checkpoints" / name).iterdir())
        )


KILLS = [(kind, signal.SIGKILL) for kind in KINDS]
STOPS = [("training", signal.SIGTERM), ("evaluation", signal.SIGINT)]


@counts(kills=len(KILLS), stops=len(STOPS))
def test_ended_anywhere_and_resumed_is_never_ended(tmp_path):
    with Program(tmp_path, epochs=5) as program:
        end_and_resume(program, KILLS + STOPS, seed=0)


MORE_STOPS = [(kind, number) for kind in KINDS[:3] for number in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@counts(kills=5 * len(KILLS), stops=len(MORE_STOPS))
def test_ended_twenty_times(tmp_path, seed):
    ends = 5 * KILLS + MORE_STOPS
    order = np.random.default_rng(seed).permutation(len(ends))
    with Program(tmp_path, epochs=20) as program:
        end_and_resume(program, [ends[index] for index in order], seed)
