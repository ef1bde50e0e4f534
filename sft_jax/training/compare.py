"""What pretraining is worth: the same recipe once more, from random weights."""

from typing import Any

from ml_collections import ConfigDict

from sft_jax.config import complete, flatten
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.runtime import processes
from sft_jax.runtime.files import write_json
from sft_jax.training.trainer import train


def train_and_compare(
    config: ConfigDict, run: Run, *, resume: bool, console: Console, command: list[str]
) -> dict[str, Any]:
    """`train`; with `config.compare_with_scratch` also from random weights, in the folder `scratch` of the run.

    The results then have the key `scratch_test_accuracy`.
    """
    results = train(config, run, resume=resume, console=console, command=command)
    if not config.compare_with_scratch or config.init == "scratch":
        return results
    values = flatten(config) | {"init": "scratch", "compare_with_scratch": False}
    # Its folder exists already where an earlier session got that far: then it is continued.
    scratch = train(complete(values), Run(run.folder / "scratch"), resume=resume, console=console, command=command)
    results["scratch_test_accuracy"] = scratch["test_accuracy"]
    processes.in_first(lambda: write_json(run.results_file, results))
    console.log_to(run.log_file)
    console.conclude(
        f"test accuracy {results['test_accuracy']:.2%} from {config.init}, "
        f"{results['scratch_test_accuracy']:.2%} from random weights"
    )
    return results
