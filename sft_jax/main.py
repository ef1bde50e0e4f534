"""Trains a network: `python -m sft_jax.main --config configs/cifar10.py`."""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sft_jax.cli import Overrides, add_config_flags, make_parser, parse_with_overrides
from sft_jax.runtime.accelerators import PLATFORMS, use_platform
from sft_jax.runtime.allocator import keep_freed_memory
from sft_jax.runtime.cache import keep_compiled_programs

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from sft_jax.training.observer import Observer

EXAMPLE = """example:
  python -m sft_jax.main --config configs/cifar10.py --config.epochs=20 --workdir runs/short
"""


def parse(argv: list[str]) -> tuple[argparse.Namespace, Overrides]:
    """Parses the flags and the overrides of the recipe."""
    parser = make_parser("python -m sft_jax.main", "Fine-tunes an image classifier according to a recipe.", EXAMPLE)
    add_config_flags(parser)
    parser.add_argument("--workdir", type=Path, metavar="RUN", help="folder of the run (default: runs/<config name>)")
    parser.add_argument("--resume", action="store_true", help="continue the run in the workdir")
    parser.add_argument(
        "--lr-find",
        action="store_true",
        help="only run a learning-rate range test, which plots the loss to lr_find.png in the workdir",
    )
    parser.add_argument(
        "--platform", choices=PLATFORMS, help="require this platform (default: the fastest one available)"
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="join the processes of the cluster: TPU pod slice, SLURM, Open MPI, Kubernetes",
    )
    parser.add_argument(
        "--coordinator-address", metavar="HOST:PORT", help="without a cluster: address of process 0, for all processes"
    )
    parser.add_argument("--num-processes", type=int, metavar="N", help="without a cluster: number of processes")
    parser.add_argument("--process-id", type=int, metavar="I", help="without a cluster: index of this process, from 0")
    parser.add_argument("--quiet", action="store_true", help="print only errors and the last line")
    args, overrides = parse_with_overrides(parser, argv)
    _check_processes(parser, args)
    return args, overrides


def _check_processes(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exits with code 2 if the flags for several processes are inconsistent; sets `distributed` if there are any."""
    named = (args.coordinator_address, args.num_processes, args.process_id)
    if named != (None, None, None):
        if None in named or args.distributed:
            parser.error(
                "--coordinator-address, --num-processes and --process-id must be given together, without --distributed"
            )
        if not 0 <= args.process_id < args.num_processes:
            parser.error(f"--process-id {args.process_id} must be between 0 and {args.num_processes - 1}")
        if not re.fullmatch(r".+:\d{1,5}", args.coordinator_address):
            parser.error(f"--coordinator-address {args.coordinator_address} is not HOST:PORT")
        args.distributed = True
    if args.distributed and args.lr_find:
        parser.error("--lr-find supports only one process")


def main() -> None:
    """Parses the command line and trains."""
    args, overrides = parse(sys.argv[1:])
    # jax is imported after parsing, so that --help and usage errors are fast, and after configuring the allocator.
    keep_freed_memory()
    keep_compiled_programs()
    from sft_jax.config import load_config
    from sft_jax.runtime import processes

    config = load_config(args.config, overrides)
    if not args.distributed:
        train(config, args)
        return
    processes.join(args.coordinator_address, args.num_processes, args.process_id)
    processes.run_together(lambda: train(config, args))


def train(config: "ConfigDict", args: argparse.Namespace) -> None:
    """Trains, or tests learning rates, according to the flags, in one process or one of several connected ones."""
    from sft_jax.config.recipe import config_name
    from sft_jax.run.console import Console
    from sft_jax.run.folder import Run
    from sft_jax.runtime import processes
    from sft_jax.training.compare import train_and_compare

    if args.platform is not None:
        use_platform(args.platform)
    console = Console(quiet=args.quiet, mute=not processes.is_primary())
    run = Run(args.workdir or Path("runs") / config_name(args.config))
    if args.lr_find:
        from sft_jax.training.lr_find import find_learning_rate  # matplotlib takes a second

        find_learning_rate(config, run, console)
    else:
        train_and_compare(config, run, resume=args.resume, console=console, command=sys.argv, observers=observers_of)
    console.close()


def observers_of(config: "ConfigDict") -> "list[Observer]":
    """Returns the observers of a run: loggers and the report. Raises UserError if they do not support `config`."""
    from sft_jax.report.reporter import Reporter
    from sft_jax.run.loggers import Logs

    return [Logs(config.logging), Reporter(config)]


if __name__ == "__main__":
    from sft_jax.errors import run_command

    sys.exit(run_command(main))
