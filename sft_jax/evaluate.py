"""Scores a run's checkpoint on a split: `python -m sft_jax.evaluate --workdir runs/cifar10`."""

import argparse
import json
import sys
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_jax.allocator import keep_freed_memory
from sft_jax.cache import keep_compiled_programs
from sft_jax.cli import Overrides, make_parser, parse_with_overrides
from sft_jax.errors import UserError, run_command

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from sft_jax.parallel import Devices
    from sft_jax.report.console import Console
    from sft_jax.runs import Run

EXAMPLE = """example:
  python -m sft_jax.evaluate --workdir runs/cifar10 --split validation
  python -m sft_jax.evaluate --workdir runs/cifar10 --split 'train[45000:]' --config.data.dir=/elsewhere/tfds

The figures have the names of results.json, whatever the split, and go to RUN/evaluations/<split>_<checkpoint>.json;
the run's results.json is left as it is.
"""
SPLITS = ("train", "validation", "test")
# Where the data lie, which may have changed since the run.
LOCATION_KEYS = ("data.source", "data.dir", "data.download")


def parse(argv: list[str]) -> tuple[argparse.Namespace, Overrides]:
    """The flags, and the overrides of the run's settings."""
    parser = make_parser(
        "python -m sft_jax.evaluate", "Scores the checkpoint of a run on one of its splits, every image once.", EXAMPLE
    )
    parser.add_argument("--workdir", type=Path, required=True, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--split",
        default="test",
        help="train, validation or test as the run has them, or of a run on tfds what tfds understands, as "
        "'train[:100]' (default: %(default)s)",
    )
    parser.add_argument("--checkpoint", choices=("best", "latest"), default="best", help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument(
        "--config.KEY", metavar="VALUE", help=f"where the data are now; KEY is {', '.join(LOCATION_KEYS)}"
    )
    return parse_with_overrides(parser, argv)


def main() -> None:
    """Evaluates and prints."""
    args, overrides = parse(sys.argv[1:])
    # After the flags, as in `main.py`.
    keep_freed_memory()
    keep_compiled_programs()
    from sft_jax.report.console import Console
    from sft_jax.runs import Run

    run, console = Run(args.workdir), Console()
    results, file = evaluate(run, args.split, args.checkpoint, overrides, console)
    if args.json:
        print(json.dumps(results))
        return
    console.line(
        f"{args.checkpoint} checkpoint of {args.workdir}, {args.split}: accuracy {results['test_accuracy']:.2%} on "
        f"{results['test_count']:,} images, top-5 {results['test_top5']:.2%}, loss {results['test_loss']:.4f}, "
        f"calibration error {results['ece']:.4f}"
    )
    console.line(f"per class and more: {file}")


def evaluate(
    run: "Run", split: str, checkpoint: str, overrides: Overrides, console: "Console"
) -> tuple[dict[str, Any], Path]:
    """Scores the "best" or "latest" checkpoint of `run`.

    Args:
      run: the run.
      split: train, validation, test, or an expression that tfds understands.
      checkpoint: which.
      overrides: of `LOCATION_KEYS`.
      console: draws a bar.

    Returns:
      the figures under the names of results.json, and the file to which they were written.

    Raises:
      UserError: no such run, checkpoint or split, data that are not the run's, or nothing can be written.
    """
    from sft_jax.classifier import check_evaluable
    from sft_jax.config import complete, flatten
    from sft_jax.parallel import Devices
    from sft_jax.progress import Progress
    from sft_jax.report.console import Console as Quiet
    from sft_jax.report.results import write_json
    from sft_jax.start import earlier, read_dataset
    from sft_jax.task import Task

    devices = Devices()
    config = _settings(run.config(), overrides, devices)
    check_evaluable(config, checkpoint)
    latest = run.restored("latest")
    found = latest if checkpoint == "latest" else run.restored(checkpoint)
    if split not in SPLITS:
        if not config.data.source.startswith("tfds:"):
            raise UserError(f"--split {split!r} must be train, validation or test: the run is on {config.data.source}")
        config = complete(flatten(config) | {"data.test": split})
    # The console says what is going on to standard output, which may be wanted for JSON alone.
    dataset = read_dataset(config, Quiet(mute=True), once=True, before=earlier(run))
    for notice in dataset.notices:
        print(notice, file=sys.stderr)
    if tuple(found.metadata["class_names"]) != dataset.class_names:
        raise UserError(f"the classes of {config.data.source} are not those of {run.folder}; name the data of the run")
    task = Task(config, dataset, devices)
    with console.progress(f"{checkpoint} on {split}", 1) as bar:
        figures = task.test(
            *task.weights(found.arrays), getattr(dataset, split if split in SPLITS else "test"), bar.set
        )
    # The latest save knows of the whole run.
    results = figures | Progress(**latest.metadata["progress"]).outcome()
    file = run.folder / "evaluations" / f"{urllib.parse.quote(split, safe='')}_{checkpoint}.json"
    write_json(file, results)
    return results, file


def _settings(config: "ConfigDict", overrides: Overrides, devices: "Devices") -> "ConfigDict":
    """The run's configuration with the data where they are now, and batches that divide over these devices."""
    from sft_jax.config import complete, flatten, parse_value

    for name, _ in overrides:
        if name not in LOCATION_KEYS:
            raise UserError(f"config.{name} is the run's and stays; only {', '.join(LOCATION_KEYS)} can be set here")
    changes = {name: parse_value(name, text) for name, text in overrides}
    return complete(flatten(config) | {"batch_size": devices.whole_batch(config.batch_size)} | changes)


if __name__ == "__main__":
    sys.exit(run_command(main))
