"""Runs training processes that tests kill at any moment."""

import json
import subprocess
import sys
from pathlib import Path

from children import environment
from tiny_runs import TINY

from sft_jax.run.folder import Run

PROGRAM = Path(__file__).with_name("tiny_program.py")
# Saves after every step; a separate process has one device.
SETTINGS = TINY | {"epochs": 5, "limit_train_examples": 192, "limit_eval_examples": 150, "save_minutes": 1e-9}


class Program:
    """Runs the program with one recipe, in folders below `place`."""

    def __init__(self, place, epochs, **changes):
        self.place, self.epochs = place, epochs
        changed = {key.replace("__", "."): value for key, value in changes.items()}
        recipe, settings = place / "recipe.py", SETTINGS | {"epochs": epochs} | changed
        recipe.write_text(f"from sft_jax.config import complete\ndef get_config(arg=''): return complete({settings})\n")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        changed = environment(SFT_JAX_CACHE=str(place / "cache"))
        self._server = subprocess.Popen([sys.executable, str(PROGRAM)], env=changed, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.kill()
        self._server.communicate()

    def start(self, name, *flags, **environment):
        """Starts the program; `finish` must be called before the next start."""
        arguments = ["--config", str(self.place / "recipe.py"), "--workdir", str(self.place / name), *flags]
        print(json.dumps([arguments, environment]), file=self._server.stdin, flush=True)

    def finish(self):
        """Waits for the program to exit; returns exit code, stdout and stderr."""
        return json.loads(self._server.stdout.readline())

    def run(self, name, *flags, **environment):
        """Runs the program; returns the exit code and stderr."""
        self.start(name, *flags, **environment)
        code, _, error = self.finish()
        return code, error

    def run_uninterrupted(self):
        """Runs without interruption in the folder "whole"; returns the number of events of each kind per epoch."""
        counts = self.place / "events.json"
        assert self.run("whole", EVENT_COUNTS=str(counts)) == (0, "")
        return {kind: count // self.epochs for kind, count in json.loads(counts.read_text()).items()}


def results_of(folder):
    return Run(folder).results() | {"seconds": 0}
