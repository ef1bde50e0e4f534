"""Starts the process that compiles a recipe for a device that is not in this machine, and passes on what it says."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from sft_jax.cli import Overrides
from sft_jax.errors import UserError
from sft_jax.runtime.absent import check_compiler, environment


def report_on(
    name: str, config: str, overrides: Overrides, batches: list[int], tell: Callable[[str], None]
) -> dict[str, Any]:
    """Returns the report of target `name` on a recipe, see `figures.figures`; `tell` gets each line as it is known.

    Raises:
      UserError: the compiler is missing or was killed, or training would refuse the configuration.
    """
    check_compiler(name)
    command = [sys.executable, "-m", "sft_jax.doctor.ahead", json.dumps([name, config, overrides, batches])]
    with tempfile.TemporaryFile("w+") as log:
        worker = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | environment(name)
        )
        with worker:
            assert worker.stdout is not None
            answer = _answer(worker.stdout, tell)
        log.seek(0)
        last = ([line for line in log.read().splitlines() if line.strip()] or [f"exit code {worker.returncode}"])[-1]
    if "error" in answer:
        raise UserError(answer["error"])
    if "report" not in answer:
        raise UserError(f"--target {name}: the compiler's process ended without an answer ({last})")
    return answer["report"]


def _answer(lines: Any, tell: Callable[[str], None]) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    for text in lines:
        if not text.startswith("{"):
            continue  # a compiler's own words
        said = json.loads(text)
        if "line" in said:
            tell(said["line"])
        else:
            answer |= said
    return answer
