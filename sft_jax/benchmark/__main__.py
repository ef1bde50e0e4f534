"""Times sft-jax and PyTorch side by side: `python -m sft_jax.benchmark`."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_jax.benchmark.sides import SIDES, Timing, figures, measure, speedups
from sft_jax.cli import make_parser
from sft_jax.errors import run_command
from sft_jax.runtime.ahead import ask
from sft_jax.runtime.chips import TARGETS

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLE = """example:
  python -m sft_jax.benchmark --batch 64 --size 64
  python -m sft_jax.benchmark --epoch --rounds 1
  python -m sft_jax.benchmark --input flowers/train --batch 64 --size 224
  python -m sft_jax.benchmark --target gpu-h100 --arch resnet50 --batch 64 --size 224 --precision bfloat16

Each framework runs in its own process; they take turns, and figures are medians. Steps are timed on preloaded images
without augmentation; an epoch (configs/cifar10.py on random pixels) includes input, augmentation and validation.
PyTorch, if installed, runs torchvision's, timm's or transformers' network in a plain script: of images in both memory
formats, on a CPU with and without sft-jax's allocator settings, on a GPU also compiled, and under autocast for
bfloat16. The fastest of these is what sft-jax is compared with; it also runs the epoch, with torchvision's transforms
in DataLoaders and with images that are one tensor in memory.
--input times no network, but the way from a folder of images to augmented batches, against torchvision's ImageFolder
and DataLoader. --target times nothing: it compiles the step for a device that is not here and counts what it does,
beside that of a ResNet of stock Flax layers.
"""


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the flags."""
    parser = make_parser(
        "python -m sft_jax.benchmark", "Times training and evaluation steps of sft-jax and PyTorch.", EXAMPLE
    )
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("--arch", default="resnet18", help="name of the network (default: %(default)s)")
    parser.add_argument("--batch", default=100, help="batch size (default: %(default)s)", **number)
    size = "image size in pixels, or tokens of a text (default: %(default)s)"
    parser.add_argument("--size", default=32, help=size, **number)
    parser.add_argument(
        "--precision",
        default="float32",
        choices=["float32", "bfloat16"],
        help="precision of both sides (default: %(default)s)",
    )
    parser.add_argument("--rounds", default=5, help="turns of each process (default: %(default)s)", **number)
    parser.add_argument("--stock", action="store_true", help="also time a ResNet of stock Flax layers in the same loop")
    parser.add_argument("--epoch", action="store_true", help="also time an epoch of configs/cifar10.py, with its input")
    parser.add_argument(
        "--input",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="time the input instead, from one folder of images per class (default: JPEG files of 500 px, made for it)",
    )
    parser.add_argument("--target", choices=TARGETS, help="compile for this device, which need not be here")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    if args.target and (args.stock or args.epoch):
        parser.error("--target times nothing: leave out --stock and --epoch; stock Flax is always beside it")
    if args.input is not None and (args.stock or args.epoch or args.target):
        parser.error("--input times no network: leave out --stock, --epoch and --target")
    return args


def main() -> None:
    """Runs the benchmark and prints the figures."""
    args = parse(sys.argv[1:])
    if args.target:
        compile_for(args)
        return
    if args.input is not None:
        time_input(args)
        return
    facts, found = measure(args)
    values = figures(args, facts, found)
    if args.json:
        print(json.dumps(values))
        return
    from rich.console import Console

    console = Console()
    console.print(_table(values, found, facts["unit"]))
    peak = "" if values["share_of_peak"] is None else f", {values['share_of_peak']:.1%} of peak"
    console.print(
        f"{values['train_images_per_s']:.0f} {facts['unit']}s/s in training, "
        f"{values['eval_images_per_s']:.0f} in evaluation; {values['train_flops_per_s'] / 1e9:.0f} GFLOP/s{peak}",
        highlight=False,
    )


def time_input(args: argparse.Namespace) -> None:
    """Times the input of both sides and prints the figures. Raises UserError."""
    from sft_jax.benchmark.input import lines
    from sft_jax.benchmark.input import measure as measure_input

    folder = Path(args.input) if args.input else None
    values = measure_input(folder, size=args.size, batch=args.batch, rounds=args.rounds)
    print(json.dumps(values) if args.json else "\n".join(lines(values)))


# Rows of the table for a target: figures, and what they are called.
COUNTS = {
    "transposes": "transposes",
    "copies": "copies",
    "kernels": "kernels",
    "loops": "inner loops",
    "all_reduces": "all-reduces",
    "host_transfers": "transfers to or from the host",
}
SIZES = {"bytes_accessed": "bytes moved", "temp_bytes": "temporary memory", "train_bytes": "memory in all"}


def compile_for(args: argparse.Namespace) -> None:
    """Compiles the step for `args.target` and prints what it does, beside that of stock Flax. Raises UserError."""

    def tell(line: str) -> None:
        if not args.json:
            print(line, flush=True)

    request = [args.target, args.arch, args.batch, args.size, args.precision]
    values = ask("sft_jax.benchmark.ahead", args.target, request, tell)
    if args.json:
        print(json.dumps(values))
        return
    from rich.console import Console
    from rich.table import Table

    from sft_jax.runtime.estimate import size_text

    title = f"a step of {args.arch}, {args.precision}, batch {args.batch}, {args.size} px, on {args.target}"
    table = Table("", title=title)
    prefixes = {"": "sft-jax"} | ({"stock_": "stock Flax"} if "stock_transposes" in values else {})
    for name in prefixes.values():
        table.add_column(name, justify="right")
    for rows, shown in ((COUNTS, str), (SIZES, size_text)):
        for figure, name in rows.items():
            table.add_row(name, *(shown(values[f"{prefix}{figure}"]) for prefix in prefixes))
    Console().print(table)


def _table(values: Mapping[str, Any], found: Sequence[Timing], unit: str) -> "Table":
    """Returns a row for each side: its times, and how many times as fast sft-jax is."""
    from rich.table import Table

    size = f"{values['size']} {'px' if unit == 'image' else 'tokens'}"
    table = Table(title=f"{values['arch']}, batch {values['batch']}, {size}, on {values['device']}")
    tasks = list(dict.fromkeys(timing.task for timing in found))
    table.add_column("")
    for task in tasks:
        table.add_column(f"{task} ({'s' if task == 'epoch' else 'ms'})", justify="right")
        table.add_column("sft-jax is", justify="right")
    by_place, ratios = {(timing.side, timing.task): timing.value for timing in found}, speedups(found)
    for side in dict.fromkeys(timing.side for timing in found):
        cells = []
        for place in ((side, task) for task in tasks):
            cells.append(f"{by_place[place]:.1f}" if place in by_place else "")
            cells.append(f"{ratios[place]:.2f} x as fast" if place in ratios else "")
        table.add_row(SIDES[side], *cells)
    return table


if __name__ == "__main__":
    sys.exit(run_command(main))
