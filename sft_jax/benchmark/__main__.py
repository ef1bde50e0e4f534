"""Times sft-jax and PyTorch side by side: `python -m sft_jax.benchmark`."""

import argparse
import contextlib
import importlib.util
import json
import sys
from typing import Any

from sft_jax.benchmark.turns import Side
from sft_jax.cli import make_parser
from sft_jax.errors import run_command
from sft_jax.runtime.allocator import SWITCH

EXAMPLE = """example:
  python -m sft_jax.benchmark --batch 64 --size 64
  python -m sft_jax.benchmark --epoch --rounds 1

Each framework runs in its own process; they take turns, and figures are medians. Steps are timed on preloaded images
without augmentation; an epoch (configs/cifar10.py on random pixels) includes input, augmentation and validation.
PyTorch, if installed, runs torchvision's network in a plain script, with and without sft-jax's allocator settings.
"""

# Peak dense bfloat16 FLOP/s (V100 and T4: float16) from vendors' data sheets, by JAX's device kind.
PEAK_FLOPS = {
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
    "Tesla V100": 125e12,
    "Tesla T4": 65e12,
    "NVIDIA L4": 121e12,
    "TPU v2": 22.5e12,  # one core of two
    "TPU v3": 61.5e12,  # one core of two
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the flags."""
    parser = make_parser(
        "python -m sft_jax.benchmark", "Times training and evaluation steps of sft-jax and PyTorch.", EXAMPLE
    )
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("--arch", default="resnet18", help="torchvision's name of the network (default: %(default)s)")
    parser.add_argument("--batch", default=100, help="batch size (default: %(default)s)", **number)
    parser.add_argument("--size", default=32, help="image size in pixels (default: %(default)s)", **number)
    parser.add_argument(
        "--precision",
        default="float32",
        choices=["float32", "bfloat16"],
        help="precision of sft-jax (default: %(default)s)",
    )
    parser.add_argument("--rounds", default=5, help="turns of each process (default: %(default)s)", **number)
    parser.add_argument("--stock", action="store_true", help="also time sft-jax with XLA's own convolutions")
    parser.add_argument("--epoch", action="store_true", help="also time an epoch of configs/cifar10.py, with its input")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs all workers; returns the figures by name, in milliseconds per step and images per second."""
    arguments = [args.arch, str(args.batch), str(args.size)]
    with contextlib.ExitStack() as stack:

        def side(module: str, *more: str, allocator: bool = True) -> Side:
            environment = {SWITCH: "1" if allocator else "0"}
            return stack.enter_context(Side(module, [*arguments, *more], environment))

        ours = side("jax_side", args.precision)
        sides = {"": ours}
        if args.stock:
            sides["stock_"] = side("jax_side", args.precision, "stock")
        if importlib.util.find_spec("torch") and importlib.util.find_spec("torchvision"):
            sides["torch_"] = side("torch_side", allocator=False)
            if ours.facts["allocator"]:
                sides["torch_allocator_"] = side("torch_side")
        for each in sides.values():
            each.turn("train", 2, keep=False)
            each.turn("eval", 2, keep=False)
        for _ in range(args.rounds):
            for each in sides.values():
                each.turn("train", 5)
                each.turn("eval", 5)
        if args.epoch:
            for _ in range(args.rounds):
                for name in {"", "torch_"} & sides.keys():
                    sides[name].turn("epoch", 1)
    return figures(args, sides)


def figures(args: argparse.Namespace, sides: dict[str, Side]) -> dict[str, Any]:
    """Computes the figures that --json prints from the measurements of `sides`, by name."""
    ours = sides[""]
    values: dict[str, Any] = {"arch": args.arch, "batch": args.batch, "size": args.size, "device": ours.facts["device"]}
    for prefix, side in sides.items():
        for task in side.times:
            ms = side.median(task)
            values |= {f"{prefix}epoch_s": ms / 1e3} if task == "epoch" else {f"{prefix}{task}_ms": ms}
    for task in ("train", "eval"):
        values[f"{task}_images_per_s"] = 1e3 * args.batch / values[f"{task}_ms"]
    for prefix in sides.keys() - {""}:
        for task in sides[prefix].times:
            unit = "epoch_s" if task == "epoch" else f"{task}_ms"
            values[f"{task}_speedup_vs_{prefix.removesuffix('_')}"] = values[prefix + unit] / values[unit]
    values["train_flops"] = ours.facts["train_flops"]
    values["train_flops_per_s"] = ours.facts["train_flops"] / values["train_ms"] * 1e3
    count, _, kind = ours.facts["device"].partition(" x ")
    peak = next((flops for name, flops in PEAK_FLOPS.items() if kind.startswith(name)), None)
    values["share_of_peak"] = None if peak is None else values["train_flops_per_s"] / (peak * int(count))
    return values


def main() -> None:
    """Runs the benchmark and prints the figures."""
    args = parse(sys.argv[1:])
    values = measure(args)
    if args.json:
        print(json.dumps(values))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{values['arch']}, batch {values['batch']}, {values['size']} px, on {values['device']}")
    tasks = ["train", "eval", *(["epoch"] if "epoch_s" in values else [])]
    units = {task: "epoch_s" if task == "epoch" else f"{task}_ms" for task in tasks}
    table.add_column("")
    for task in tasks:
        table.add_column(f"{task} ({units[task].rpartition('_')[2]})", justify="right")
        table.add_column("sft-jax is", justify="right")
    names = {
        "": "sft-jax",
        "stock_": "with XLA's convolutions",
        "torch_": "PyTorch",
        "torch_allocator_": "PyTorch, allocator set",
    }
    for prefix, name in names.items():
        if f"{prefix}train_ms" not in values:
            continue
        cells = []
        for task in tasks:
            value = values.get(prefix + units[task])
            speedup = values.get(f"{task}_speedup_vs_{prefix.removesuffix('_')}")
            cells += ["" if value is None else f"{value:.1f}", "" if speedup is None else f"{speedup:.2f} x as fast"]
        table.add_row(name, *cells)
    console = Console()
    console.print(table)
    peak = "" if values["share_of_peak"] is None else f", {values['share_of_peak']:.1%} of peak"
    console.print(
        f"{values['train_images_per_s']:.0f} images/s in training, {values['eval_images_per_s']:.0f} in evaluation; "
        f"{values['train_flops_per_s'] / 1e9:.0f} GFLOP/s{peak}",
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
