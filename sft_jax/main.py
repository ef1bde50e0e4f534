"""Trains: `python -m sft_jax.main --config configs/cifar10.py`."""

import argparse
import re
import sys
from pathlib import Path

from sft_jax.allocator import keep_freed_memory
from sft_jax.cache import keep_compiled_programs

EXAMPLE = """example:
  python -m sft_jax.main --config configs/cifar10.py --config.epochs=20 --workdir runs/short
"""


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """The flags, and the (key, text) pairs of `--config.KEY=VALUE` or `--config.KEY VALUE`."""
    parser = argparse.ArgumentParser(
        prog="python -m sft_jax.main",
        description="Fine-tunes an image classifier as a recipe says.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE[:ARG]", help="a recipe, for instance configs/cifar10.py"
    )
    parser.add_argument("--config.KEY", metavar="VALUE", help="set one key of the recipe (may be repeated)")
    parser.add_argument("--workdir", type=Path, metavar="RUN", help="folder of the run (default: runs/<config name>)")
    parser.add_argument("--resume", action="store_true", help="continue the run that is in the workdir")
    rest, overrides = [], []
    words = iter(argv)
    for word in words:
        match = re.fullmatch(r"--config\.([^=]+)(?:=(.*))?", word, re.DOTALL)
        if match is None:
            rest.append(word)
            continue
        value = match[2] if match[2] is not None else next(words, None)
        if value is None:
            parser.error(f"{word} wants a value")
        overrides.append((match[1], value))
    return parser.parse_args(rest), overrides


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
    run = Run(args.workdir or Path("runs") / config_name(args.config))
    train_and_compare(config, run, resume=args.resume, console=Console(), command=sys.argv)


if __name__ == "__main__":
    from sft_jax.errors import run_command

    sys.exit(run_command(main))
