"""Compares fine-tuning with training the same recipe from random weights."""

from typing import Any

from ml_collections import ConfigDict

from sft_jax.config import complete, flatten
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.tasks import task_class
from sft_jax.training.observer import Observers, nobody
from sft_jax.training.trainer import train


def train_and_compare(
    config: ConfigDict, run: Run, *, resume: bool, console: Console, command: list[str], observers: Observers = nobody
) -> dict[str, Any]:
    """Calls `train`; with `config.compare_with_scratch` also from random weights, in the run's subfolder `scratch`.

    The results then also contain the task's main test metric from scratch, e.g. `scratch_test_accuracy`.
    """
    settings: dict[str, Any] = {"resume": resume, "console": console, "command": command, "observers": observers}
    results = train(config, run, **settings)
    if not config.compare_with_scratch or config.init == "scratch":
        return results
    # Explaining the mistakes of random weights would take longer than making them.
    values = flatten(config) | {"init": "scratch", "compare_with_scratch": False, "report.explain": False}
    if task_class(config).unit == "text" and config.text.tokenizer is None:
        values["text.tokenizer"] = config.init
    # If an earlier session got this far, the folder exists and `resume` continues it.
    scratch = train(complete(values), Run(run.folder / "scratch"), **settings)
    main = task_class(config).main()
    ours, theirs = f"test_{main.figure}", f"scratch_test_{main.figure}"
    results[theirs] = scratch[ours]
    run.write_results(results)
    console.log_to(run.log_file)
    console.conclude(
        f"test {main.figure.replace('_', ' ')} {main.shown(results[ours])} from {config.init}, "
        f"{main.shown(results[theirs])} from random weights"
    )
    return results
