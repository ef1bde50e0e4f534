"""Evaluates a run on a split, or a network on other images: `python -m sft_jax.evaluate --workdir runs/cifar10`."""

import argparse
import json
import sys
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_jax.cli import (
    OTHERS_KEYS,
    Overrides,
    add_checkpoint_flag,
    add_network_flags,
    add_view_flags,
    check_overrides,
    make_parser,
    parse_with_overrides,
    tell,
)
from sft_jax.errors import UserError, run_command
from sft_jax.runtime.allocator import keep_freed_memory
from sft_jax.runtime.cache import keep_compiled_programs

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from sft_jax.run.console import Console
    from sft_jax.run.folder import Run
    from sft_jax.runtime.devices import Devices
    from sft_jax.tasks import Task

EXAMPLE = """example:
  python -m sft_jax.evaluate --workdir runs/cifar10 --split validation
  python -m sft_jax.evaluate --workdir runs/cifar10 --split 'train[45000:]' --config.data.dir=/elsewhere/tfds
  python -m sft_jax.evaluate --workdir runs/flowers --data folder:new_flowers
  python -m sft_jax.evaluate --weights weights/resnet18.safetensors --data csv:photos.csv

The metrics have the same names as in results.json for any split, and are written to
RUN/evaluations/<split>_<checkpoint>.json; the run's results.json is not changed. With --data, all images of the source
are evaluated once, from all of its splits; classes are matched by name and may be missing; metrics of masks come twice,
of the pixels that the network sees and, as own_size_*, of the pictures' own, which --windows is meant for. They are
written to RUN/evaluations/<source>_<checkpoint>.json, or with --weights to <its name>_<source>.json next to the file;
windows and flips are part of its name.
"""
SPLITS = ("train", "validation", "test")
# Keys of the data's location, which may have changed since the run.
LOCATION_KEYS = ("data.source", "data.dir", "data.download")


def parse(argv: list[str]) -> tuple[argparse.Namespace, Overrides]:
    """Parses the flags and the overrides of the run's settings."""
    parser = make_parser(
        "python -m sft_jax.evaluate",
        "Evaluates a checkpoint of a run on one of its splits, or a network on other images.",
        EXAMPLE,
    )
    add_network_flags(parser, workdir="folder of the run")
    parser.add_argument(
        "--data",
        metavar="SOURCE",
        help="evaluate all images of this source instead: folder:PATH, csv:FILE, hf:PATH, tfds:NAME, digits; with "
        "masks: masks:PATH, voc:PATH, panoptic:PATH; of texts: text:PATH",
    )
    parser.add_argument(
        "--split",
        help="train, validation or test of the run, or for tfds any split expression, e.g. 'train[:100]' "
        "(default: test; with --data: all)",
    )
    add_checkpoint_flag(parser)
    add_view_flags(parser)
    parser.add_argument("--json", action="store_true", help="print the metrics as a JSON object")
    parser.add_argument(
        "--config.KEY",
        metavar="VALUE",
        help=f"current location of the data; KEY is {', '.join(LOCATION_KEYS)}, with --data {', '.join(OTHERS_KEYS)}",
    )
    args, overrides = parse_with_overrides(parser, argv)
    if args.weights is not None and args.data is None:
        parser.error("--weights FILE needs images to evaluate; give them with --data SOURCE")
    if args.data is None and (args.windows is not None or args.flips):
        parser.error("--windows and --flips need pictures with masks; give them with --data SOURCE")
    return args, overrides


def main() -> None:
    """Evaluates and prints the metrics."""
    args, overrides = parse(sys.argv[1:])
    # Imported after parsing, as in `main.py`.
    keep_freed_memory()
    keep_compiled_programs()
    from sft_jax.run.console import Console
    from sft_jax.run.folder import Run

    console, split = Console(), args.split or "test"
    if args.data is None:
        results, task, file = evaluate(Run(args.workdir), split, args.checkpoint, overrides, console)
        what = f"{args.checkpoint} checkpoint of {args.workdir}, {split}"
    else:
        from sft_jax.inference.others import evaluate_others

        results, task, file = evaluate_others(args, overrides, console)
        name = args.weights or f"{args.checkpoint} checkpoint of {args.workdir}"
        what = f"{name} on {args.data}{f', {args.split}' if args.split else ''}"
    if args.json:
        print(json.dumps(results))
        return
    console.line(f"{what}: {task.details(results)}")
    if "own_size_mean_iou" in results:
        figures = (
            f"mean IoU {results['own_size_mean_iou']:.2%}, pixel accuracy {results['own_size_pixel_accuracy']:.2%}"
        )
        unseen = results["own_size_unseen"]
        beside = f"; {unseen:.1%} of them, which the network does not see, do not count" if unseen else ""
        console.line(f"on the pictures' own pixels: {figures}{beside}")
    console.line(f"all metrics, also per class: {file}")


def evaluate(
    run: "Run", split: str, checkpoint: str, overrides: Overrides, console: "Console"
) -> tuple[dict[str, Any], "Task", Path]:
    """Evaluates a checkpoint of `run`.

    Args:
      run: the run.
      split: train, validation, test, or a split expression of tfds.
      checkpoint: "best" or "latest".
      overrides: overrides of `LOCATION_KEYS`.
      console: shows a progress bar.

    Returns:
      the metrics under the names of results.json, the task, and the file they were written to.

    Raises:
      UserError: the run, checkpoint or split does not exist, the data differ from the run's, or writing fails.
    """
    from sft_jax.config import complete, flatten
    from sft_jax.data.sources.known import source_of
    from sft_jax.inference.predictor import check_evaluable
    from sft_jax.run.console import Console as Quiet
    from sft_jax.run.progress import Progress
    from sft_jax.runtime.devices import Devices
    from sft_jax.runtime.files import write_json
    from sft_jax.training.experiment import Experiment
    from sft_jax.training.start import earlier, read_dataset

    devices = Devices()
    config = _settings(run.config(), overrides, devices)
    check_evaluable(config, checkpoint)
    latest = run.restored("latest")
    restored = latest if checkpoint == "latest" else run.restored(checkpoint)
    if split not in SPLITS:
        if not source_of(config.data).has_splits:
            raise UserError(f"--split {split!r} must be train, validation or test for a run on {config.data.source}")
        config = complete(flatten(config) | {"data.test": split})
    # Muted, because standard output may be reserved for JSON.
    dataset = read_dataset(config, Quiet(mute=True), once=True, before=earlier(run))
    tell(dataset.notices)
    if tuple(restored.metadata["class_names"]) != dataset.class_names:
        raise UserError(
            f"the classes of {config.data.source} differ from those of {run.folder}; "
            f"set --config.data.source to the data of the run"
        )
    learnt = Progress.from_json(restored.metadata["progress"]).learnt
    experiment = Experiment(config, dataset, devices).as_learnt(learnt)
    with console.progress(f"{checkpoint} on {split}", 1) as bar:
        figures = experiment.test(
            *experiment.weights(restored.arrays), getattr(dataset, split if split in SPLITS else "test"), bar.set
        )
    # Only the latest checkpoint has the progress of the whole run.
    results = figures | Progress.from_json(latest.metadata["progress"]).outcome(experiment.task, experiment.monitor)
    file = run.folder / "evaluations" / f"{urllib.parse.quote(split, safe='')}_{checkpoint}.json"
    write_json(file, results)
    return results, experiment.task, file


def _settings(config: "ConfigDict", overrides: Overrides, devices: "Devices") -> "ConfigDict":
    """Returns the run's configuration with the current data location, and a batch size that fits these devices."""
    from sft_jax.config import complete, flatten
    from sft_jax.config.recipe import parse_value

    check_overrides(overrides, LOCATION_KEYS, "evaluation")
    changes = {name: parse_value(name, text) for name, text in overrides}
    return complete(flatten(config) | {"batch_size": devices.whole_batch(config.batch_size)} | changes)


if __name__ == "__main__":
    sys.exit(run_command(main))
