"""`sft_jax.main` with the network "tiny", in processes that end themselves when they are told to.

Reads lines [arguments, environment] of JSON and answers each with the process's [exit code, stdout, stderr]. The
processes are forked, before any of them has started JAX: importing everything takes longer than such a run.

END=KIND:NUMBER:SECONDS:SIGNAL in the environment sends SIGNAL that long after the NUMBER-th moment of KIND: training,
evaluation, save or report. MOMENTS=FILE has the moments of a whole run counted there.
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
EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "shutil.rmtree")
REPORTS = ("metrics.jsonl", "report.html", "results.json", "train.log")
seen: collections.Counter[str] = collections.Counter()
lock = threading.Lock()


def moment(kind: str) -> None:
    with lock:
        seen[kind] += 1
        number = seen[kind]
    if os.environ.get("END", "").startswith(f"{kind}:{number}:"):
        *_, seconds, name = os.environ["END"].split(":")
        end = (os.getpid(), signal.Signals[name])
        if name == "SIGSTOP":  # what hangs is ended in the end, as a cluster would
            subprocess.Popen(["sh", "-c", f"sleep 75; kill -KILL {os.getpid()}"])
        if float(seconds):
            threading.Timer(float(seconds), os.kill, end).start()
        else:
            os.kill(*end)


def watch_files(event: str, arguments: tuple) -> None:
    if event in EVENTS and isinstance(arguments[0], str | Path):
        path = Path(arguments[0])
        if "checkpoints" in path.parts:
            moment("save")
        elif re.sub(r"\.\d+\.tmp$", "", path.name) in REPORTS or "tensorboard" in path.parts:
            moment("report")


def after(function, kind: str):
    """Wraps `function` so that a moment follows it."""

    def watched(*arguments, **named):
        result = function(*arguments, **named)
        moment(kind)
        return result

    return watched


def run(arguments: list[str], environment: dict[str, str]) -> int:
    """Runs the program in a forked process."""
    os.environ.update(environment)
    sys.argv[1:] = arguments
    train_module.StepsPerCall = lambda: StepsPerCall(seconds=0)  # type: ignore[assignment,misc]  # a moment for every step
    evaluator.StepsPerCall = lambda **_: StepsPerCall(seconds=0)  # type: ignore[assignment,misc]
    Progress.add = after(Progress.add, "training")  # type: ignore[method-assign]  # the next step is under way then
    Bar.set = after(Bar.set, "evaluation")  # type: ignore[method-assign]
    sys.addaudithook(watch_files)
    code = run_command(main)
    if "MOMENTS" in os.environ:
        Path(os.environ["MOMENTS"]).write_text(json.dumps(seen))
    return code


def serve() -> None:
    """Runs the processes one after the other."""
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
