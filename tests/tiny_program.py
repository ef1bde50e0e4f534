"""Runs `sft_jax.main` with the network "tiny" in forked processes, which can send themselves a signal at an event.

Reads lines [arguments, environment] of JSON and answers each with the process's [exit code, stdout, stderr]. The
processes are forked after the imports, which take longer than such a run, and before JAX has started.

An event is a finished step of training or of evaluation, or a file operation of a save or of a report. With
END=KIND:NUMBER:SECONDS:SIGNAL in the environment, a process sends itself SIGNAL that many seconds after its NUMBER-th
event of KIND: training, evaluation, save or report. EVENT_COUNTS=FILE writes the number of events of each kind to FILE.
"""

import collections
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from tiny_runs import TINY_VARIANT

from sft_jax.data.loader import StepsPerCall
from sft_jax.errors import run_command
from sft_jax.main import main
from sft_jax.models import ARCHITECTURES
from sft_jax.models.resnet import architecture
from sft_jax.run.console import Bar
from sft_jax.run.progress import Progress
from sft_jax.training import evaluator
from sft_jax.training import trainer as train_module

ARCHITECTURES["tiny"] = architecture("tiny", TINY_VARIANT)
AUDIT_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "shutil.rmtree")
REPORTS = ("metrics.jsonl", "report.html", "results.json", "train.log")
event_counts: collections.Counter[str] = collections.Counter()
lock = threading.Lock()


def record_event(kind: str) -> None:
    """Counts an event, and sends the signal of END if this is its event."""
    with lock:
        event_counts[kind] += 1
        number = event_counts[kind]
    if os.environ.get("END", "").startswith(f"{kind}:{number}:"):
        *_, seconds, name = os.environ["END"].split(":")
        end = (os.getpid(), signal.Signals[name])
        if name == "SIGSTOP":  # a process that hangs is killed in the end, as a cluster would do
            subprocess.Popen(["sh", "-c", f"sleep 75; kill -KILL {os.getpid()}"])
        if float(seconds):
            threading.Timer(float(seconds), os.kill, end).start()
        else:
            os.kill(*end)


def watch_files(event: str, arguments: tuple) -> None:
    if event in AUDIT_EVENTS and isinstance(arguments[0], str | Path):
        path = Path(arguments[0])
        if "checkpoints" in path.parts:
            record_event("save")
        elif re.sub(r"\.\d+\.tmp$", "", path.name) in REPORTS or "tensorboard" in path.parts:
            record_event("report")


def after(function, kind: str):
    """Wraps `function` so that an event of `kind` is recorded after each call."""

    def watched(*arguments, **named):
        result = function(*arguments, **named)
        record_event(kind)
        return result

    return watched


def run(arguments: list[str], environment: dict[str, str]) -> int:
    """Runs the program in a forked process."""
    os.environ.update(environment)
    sys.argv[1:] = arguments
    train_module.StepsPerCall = lambda: StepsPerCall(seconds=0)  # type: ignore[assignment,misc]  # an event for every step
    evaluator.StepsPerCall = lambda **_: StepsPerCall(seconds=0)  # type: ignore[assignment,misc]
    Progress.add = after(Progress.add, "training")  # type: ignore[method-assign]  # the next step is running by then
    Bar.set = after(Bar.set, "evaluation")  # type: ignore[method-assign]
    sys.addaudithook(watch_files)
    code = run_command(main)
    if "EVENT_COUNTS" in os.environ:
        Path(os.environ["EVENT_COUNTS"]).write_text(json.dumps(event_counts))
    return code


def serve() -> None:
    """Runs one process per line of standard input, one after the other."""
    for line in sys.stdin:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            pid = os.fork()
            if not pid:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.exit(run(*json.loads(line)))
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            texts = [file.seek(0) or file.read().decode() for file in (out, err)]
        print(json.dumps([code, *texts]), flush=True)


if __name__ == "__main__":
    for name in ("sft_jax.training.compare", "sklearn.datasets"):
        importlib.import_module(name)  # the program imports them late
    serve()
