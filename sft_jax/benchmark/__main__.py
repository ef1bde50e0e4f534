"""Ours and PyTorch side by side: `python -m sft_jax.benchmark`."""

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

Each side is a process of its own and they take turns; figures are medians. Steps are timed on images that are ready and
not augmented; an epoch (configs/cifar10.py on random pixels) includes input, augmentation and validation on both sides.
PyTorch, where it is installed, is torchvision's network in a plain script, with and without our allocator settings.
"""

# Dense bfloat16 (T4: float16) products a second, from the makers' data sheets, by what jax calls the device.
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
    """The flags."""
    parser = make_parser(
        "python -m sft_jax.benchmark", "Times training and evaluation steps, ours and PyTorch's.", EXAMPLE
    )
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("--arch", default="resnet18", help="torchvision's name of the network (default: %(default)s)")
    parser.add_argument("--batch", default=100, help="images a step (default: %(default)s)", **number)
    parser.add_argument(
        "--size", default=32, **number | {"help": "side of the images in pixels (default: %(default)s)"}
    )
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"], help="ours")
    parser.add_argument("--rounds", default=5, help="turns of every side (default: %(default)s)", **number)
    parser.add_argument("--stock", action="store_true", help="also our network on XLA's own convolutions")
    parser.add_argument("--epoch", action="store_true", help="also an epoch of configs/cifar10.py, with its input")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs all sides; returns the figures by name, milliseconds a step and images a second."""
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
    """What `sides` measured, under the names of the interface."""
    ours = sides[""]
    found: dict[str, Any] = {"arch": args.arch, "batch": args.batch, "size": args.size, "device": ours.facts["device"]}
    for prefix, side in sides.items():
        for task in side.times:
            value = side.median(task)
            found |= {f"{prefix}epoch_s": value / 1e3} if task == "epoch" else {f"{prefix}{task}_ms": value}
    for task in ("train", "eval"):
        found[f"{task}_images_per_s"] = 1e3 * args.batch / found[f"{task}_ms"]
    for prefix in sides.keys() - {""}:
        for task in sides[prefix].times:
            unit = "epoch_s" if task == "epoch" else f"{task}_ms"
            found[f"{task}_speedup_vs_{prefix.removesuffix('_')}"] = found[prefix + unit] / found[unit]
    found["train_flops"] = ours.facts["train_flops"]
    found["train_flops_per_s"] = ours.facts["train_flops"] / found["train_ms"] * 1e3
    count, _, kind = ours.facts["device"].partition(" x ")
    peak = next((flops for name, flops in PEAK_FLOPS.items() if kind.startswith(name)), None)
    found["share_of_peak"] = None if peak is None else found["train_flops_per_s"] / (peak * int(count))
    return found


def main() -> None:
    """Measures and prints."""
    args = parse(sys.argv[1:])
    found = measure(args)
    if args.json:
        print(json.dumps(found))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{found['arch']}, batch {found['batch']}, {found['size']} px, on {found['device']}")
    tasks = ["train", "eval", *(["epoch"] if "epoch_s" in found else [])]
    units = {task: "epoch_s" if task == "epoch" else f"{task}_ms" for task in tasks}
    table.add_column("")
    for task in tasks:
        table.add_column(f"{task} ({units[task].rpartition('_')[2]})", justify="right")
        table.add_column("ours is", justify="right")
    names = {
        "": "sft-jax",
        "stock_": "on XLA's convolutions",
        "torch_": "PyTorch",
        "torch_allocator_": "PyTorch, allocator set",
    }
    for prefix, name in names.items():
        if f"{prefix}train_ms" not in found:
            continue
        cells = []
        for task in tasks:
            value = found.get(prefix + units[task])
            speedup = found.get(f"{task}_speedup_vs_{prefix.removesuffix('_')}")
            cells += ["" if value is None else f"{value:.1f}", "" if speedup is None else f"{speedup:.2f} x as fast"]
        table.add_row(name, *cells)
    console = Console()
    console.print(table)
    share = "" if found["share_of_peak"] is None else f", {found['share_of_peak']:.1%} of the peak"
    console.print(
        f"{found['train_images_per_s']:.0f} images/s in training, {found['eval_images_per_s']:.0f} in evaluation; "
        f"{found['train_flops_per_s'] / 1e9:.0f} GFLOP/s{share}",
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
