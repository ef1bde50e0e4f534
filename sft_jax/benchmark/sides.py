"""Times the steps of sft-jax and PyTorch, whose workers take turns, and computes what the benchmark reports."""

import argparse
import contextlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sft_jax.benchmark.turns import Side
from sft_jax.errors import UserError
from sft_jax.runtime.allocator import SWITCH
from sft_jax.runtime.chips import peak_of

# What the table calls the workers.
SIDES = {
    "": "sft-jax",
    "stock": "stock Flax layers",
    "torch_nchw": "PyTorch",
    "torch_nchw_allocator": "PyTorch, allocator set",
    "torch_channels_last": "PyTorch, channels_last",
    "torch_channels_last_allocator": "PyTorch, channels_last, allocator set",
    "torch_compiled": "PyTorch, channels_last, compiled",
    "torch_in_memory": "PyTorch at its best, images in memory",
}
# The task of PyTorch's worker that is an epoch of the side "torch_in_memory".
IN_MEMORY = "epoch_in_memory"


class Timing(NamedTuple):
    """The median time of one side at one task.

    Attributes:
      side: a key of `SIDES`.
      task: "train", "eval" or "epoch".
      milliseconds: of a step; of an epoch, of all of it.
    """

    side: str
    task: str
    milliseconds: float

    @property
    def name(self) -> str:
        """Its name in --json, where epochs are in seconds."""
        prefix = f"{self.side}_" if self.side else ""
        return f"{prefix}epoch_s" if self.task == "epoch" else f"{prefix}{self.task}_ms"

    @property
    def value(self) -> float:
        """Its value in --json."""
        return self.milliseconds / 1e3 if self.task == "epoch" else self.milliseconds


def measure(args: argparse.Namespace) -> tuple[dict[str, Any], list[Timing]]:
    """Runs all workers; returns what our worker says of itself, and the timings of all."""
    # Imported late: it takes a second.
    from sft_jax.models import architecture

    known = architecture(args.arch)
    of_texts = known.texts is not None
    if (of_texts or known.dense) and (args.epoch or args.stock):
        does = "takes texts" if of_texts else "has outputs of pixels"
        raise UserError(f"--epoch and --stock are for classifiers of images, but {args.arch} {does}")
    arguments = [args.arch, str(args.batch), str(args.size)]
    with contextlib.ExitStack() as stack:

        def side(module: str, *more: str, allocator: bool = True) -> Side:
            # The workers share a GPU, most of whose memory JAX would take.
            environment = {SWITCH: "1" if allocator else "0", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
            return stack.enter_context(Side(module, [*arguments, args.precision, *more], environment))

        ours = side("jax_side")
        sides = {"": ours}
        if args.stock:
            sides["stock"] = side("jax_side", "stock")
        if importlib.util.find_spec("torch") and importlib.util.find_spec("torchvision"):
            sides |= _pytorch(side, ours.facts, of_texts=of_texts)
        for each in sides.values():
            each.turn("train", 2, keep=False)
            each.turn("eval", 2, keep=False)
        for _ in range(args.rounds):
            for each in sides.values():
                each.turn("train", 5)
                each.turn("eval", 5)
        if args.epoch:
            best = rival(timings(sides), "train")
            for _ in range(args.rounds):
                ours.turn("epoch", 1)
                if best is not None:
                    sides[best].turn("epoch", 1)
                    sides[best].turn(IN_MEMORY, 1)
        return ours.facts | {"unit": "text" if of_texts else "image"}, timings(sides)


def _pytorch(start: Callable[..., Side], facts: Mapping[str, Any], *, of_texts: bool) -> dict[str, Side]:
    """Starts PyTorch's workers, if PyTorch runs on the same kind of device as ours, which says `facts` of itself.

    Networks of texts have no channels.
    """
    on_cpu = facts["platform"] == "cpu"
    sides = {}
    formats = (("torch_nchw", ()), ("torch_channels_last", ("channels_last",)))
    for kind, options in formats[:1] if of_texts else formats:
        sides[kind] = start("torch_side", *options, allocator=False)
        platform = sides[kind].facts["platform"]
        if platform != facts["platform"]:
            print(
                f"PyTorch runs on the {platform.upper()} here, JAX on {facts['device']}: not compared", file=sys.stderr
            )
            return {}
        if on_cpu and facts["allocator"]:
            sides[f"{kind}_allocator"] = start("torch_side", *options)
    if not on_cpu:
        print("PyTorch will compile its network, too, which takes minutes", file=sys.stderr)
        sides["torch_compiled"] = start("torch_side", "channels_last", "compiled")
    return sides


def timings(sides: Mapping[str, Side]) -> list[Timing]:
    """Returns the timings of all sides, by the names of `SIDES`."""

    def timing(name: str, task: str, milliseconds: float) -> Timing:
        if task == IN_MEMORY:
            return Timing("torch_in_memory", "epoch", milliseconds)
        return Timing(name, task, milliseconds)

    return [timing(name, task, side.median(task)) for name, side in sides.items() for task in side.times]


def rival(found: Sequence[Timing], task: str) -> str | None:
    """Returns the fastest of PyTorch's settings at a task; None without PyTorch."""
    theirs = [timing for timing in found if timing.task == task and timing.side.startswith("torch_")]
    return min(theirs, key=lambda timing: timing.milliseconds).side if theirs else None


def speedups(found: Sequence[Timing]) -> dict[tuple[str, str], float]:
    """Returns how many times as fast sft-jax is, by (side, task) of all other sides."""
    ours = {timing.task: timing.milliseconds for timing in found if not timing.side}
    return {(timing.side, timing.task): timing.milliseconds / ours[timing.task] for timing in found if timing.side}


def figures(args: argparse.Namespace, facts: Mapping[str, Any], found: Sequence[Timing]) -> dict[str, Any]:
    """Computes the figures that --json prints from the timings and what our worker says of itself."""
    values: dict[str, Any] = {"arch": args.arch, "batch": args.batch, "size": args.size, "device": facts["device"]}
    values |= {"precision": args.precision} | {timing.name: timing.value for timing in found}
    for task in ("train", "eval"):
        values[f"{task}_images_per_s"] = 1e3 * args.batch / values[f"{task}_ms"]
    ratios = speedups(found)
    values |= {f"{task}_speedup_vs_{side}": ratio for (side, task), ratio in ratios.items()}
    for task in dict.fromkeys(timing.task for timing in found):
        best = rival(found, task)
        if best is not None:
            name = "rival" if task == "train" else f"{task}_rival"
            [fastest] = (timing for timing in found if (timing.side, timing.task) == (best, task))
            values |= {name: SIDES[best], fastest._replace(side="torch").name: fastest.value}
            values[f"{task}_speedup_vs_torch"] = ratios[best, task]
    values["train_flops"] = facts["train_flops"]
    values["train_flops_per_s"] = facts["train_flops"] / values["train_ms"] * 1e3
    count, _, kind = facts["device"].partition(" x ")
    peak = peak_of(kind)
    values["share_of_peak"] = None if peak is None else values["train_flops_per_s"] / (peak.bfloat16 * int(count))
    return values
