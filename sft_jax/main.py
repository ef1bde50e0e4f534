"""Trains: `python -m sft_jax.main --config configs/cifar10.py`."""

import argparse
import sys
from pathlib import Path

from sft_jax.accelerators import PLATFORMS, use_platform
from sft_jax.allocator import keep_freed_memory
from sft_jax.cache import keep_compiled_programs
from sft_jax.cli import Overrides, add_config_flags, make_parser, parse_with_overrides

EXAMPLE = """example:
  python -m sft_jax.main --config configs/cifar10.py --config.epochs=20 --workdir runs/short
"""


def parse(argv: list[str]) -> tuple[argparse.Namespace, Overrides]:
    """The flags, and the overrides of the recipe's keys."""
    parser = make_parser("python -m sft_jax.main", "Fine-tunes an image classifier as a recipe says.", EXAMPLE)
    add_config_flags(parser)
    parser.add_argument("--workdir", type=Path, metavar="RUN", help="folder of the run (default: runs/<config name>)")
    parser.add_argument("--resume", action="store_true", help="continue the run that is in the workdir")
    parser.add_argument(
        "--lr-find",
        action="store_true",
        help="only test learning rates, on a copy of the weights: lr_find.png in the workdir shows the loss at each",
    )
    parser.add_argument("--platform", choices=PLATFORMS, help="run on this or not at all (default: the best there is)")
    parser.add_argument("--quiet", action="store_true", help="print errors and the last line only")
    return parse_with_overrides(parser, argv)


def main() -> None:
    """Parses the command line and trains."""
    args, overrides = parse(sys.argv[1:])
    # After the flags: --help and wrong usage need not wait for jax, and the allocator has to be set before it comes.
    keep_freed_memory()
    keep_compiled_programs()
    from sft_jax.compare import train_and_compare
    from sft_jax.config import config_name, load_config
    from sft_jax.report.console import Console
    from sft_jax.runs import Run

    config = load_config(args.config, overrides)
    if args.platform is not None:
        use_platform(args.platform)
    console = Console(quiet=args.quiet)
    run = Run(args.workdir or Path("runs") / config_name(args.config))
    if args.lr_find:
        from sft_jax.lr_find import find_learning_rate  # matplotlib takes a second

        find_learning_rate(config, run, console)
    else:
        train_and_compare(config, run, resume=args.resume, console=console, command=sys.argv)
    console.close()


if __name__ == "__main__":
    from sft_jax.errors import run_command

    sys.exit(run_command(main))
