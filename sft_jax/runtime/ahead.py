"""Asks a process of its own to compile for a device that is not in this machine.

Its own, because the compiler's environment is fixed when JAX starts, and because compilers of devices may abort. It
prints lines of JSON: {"line": text}, any number of them, then {"report": figures} or {"error": text}.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

from sft_jax.errors import UserError
from sft_jax.runtime.absent import check_compiler, environment

Tell = Callable[[str], None]


def ask(module: str, target: str, request: Any, tell: Tell) -> dict[str, Any]:
    """Returns the report of `module` on a JSON-serialisable `request`; `tell` gets each of its lines as it is printed.

    Raises:
      UserError: the compiler of `target` is missing or was killed, or the process answers with an error.
    """
    check_compiler(target)
    command = [sys.executable, "-m", module, json.dumps(request)]
    with tempfile.TemporaryFile("w+") as log:
        worker = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | environment(target)
        )
        with worker:
            assert worker.stdout is not None
            answer = _answer(worker.stdout, tell)
        log.seek(0)
        last = _last_words(log.read()) or f"exit code {worker.returncode}"
    if "error" in answer:
        raise UserError(answer["error"])
    if "report" not in answer:
        raise UserError(f"--target {target}: the compiler's process ended without an answer ({last})")
    return answer["report"]


def _last_words(log: str) -> str | None:
    """Returns the last line of a process's log, without JAX's note on tracebacks, which follows an error's message."""
    words = log.partition("\n--------------------\nFor simplicity, JAX")[0].splitlines()
    return next((line for line in reversed(words) if line.strip()), None)


def _answer(lines: Iterable[str], tell: Tell) -> dict[str, Any]:
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


def answer(make_report: Callable[[Any, Tell], dict[str, Any]]) -> None:
    """Answers the request that is the argument of this process with the result of `make_report(request, tell)`."""

    def say(**what: Any) -> None:
        print(json.dumps(what), flush=True)

    try:
        say(report=make_report(json.loads(sys.argv[1]), lambda line: say(line=line)))
    except UserError as error:
        say(error=str(error))
