"""The worker processes of the benchmark, which take turns so that none runs while another is timed."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.errors import UserError


class Side:
    """A running worker process (see `worker.serve`); a context manager that terminates it on exit.

    Raises:
      UserError: the worker exited before it answered.
    """

    def __init__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str]):
        self.module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"sft_jax.benchmark.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.facts: dict[str, Any] = self._answer()
        self.times: dict[str, list[float]] = {}

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()

    def turn(self, task: str, repeats: int, *, keep: bool = True) -> None:
        """Runs a task, and records its times unless it is a warm-up."""
        assert self._process.stdin is not None
        print(task, repeats, file=self._process.stdin, flush=True)
        times = self._answer()
        if keep:
            self.times.setdefault(task, []).extend(times)

    def median(self, task: str) -> float:
        """Returns the median time of a task over all turns, in milliseconds."""
        return statistics.median(self.times[task])

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.communicate()
            raise UserError(f"{self.module} exited early; see its output above")
        return json.loads(line)
