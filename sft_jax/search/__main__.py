"""Searches hyper-parameters: `python -m sft_jax.search --config FILE --space 'KEY=log(LOW,HIGH)' --trials 16`."""

import argparse
import sys
from pathlib import Path

from sft_jax.cli import Overrides, add_config_flags, make_parser, parse_with_overrides
from sft_jax.runtime.allocator import keep_freed_memory
from sft_jax.runtime.cache import keep_compiled_programs

EXAMPLE = """example:
  python -m sft_jax.search --config configs/cifar10.py --space 'optimizer.learning_rate=log(1e-4,1e-1)' --trials 16

Forms of --space, for any key of a recipe (see sft_jax/config/schema.py):
  KEY=log(LOW,HIGH)         a number, log-uniform
  KEY=linear(LOW,HIGH)      a number, uniform
  KEY=int(LOW,HIGH)         an integer, including LOW and HIGH
  KEY=choice(ONE,TWO,...)   one of these values, written as in --config.KEY=VALUE; init also sets the network

The search writes best.py (a recipe for sft_jax.main), search.csv, search.json, dimensions.png, history.png,
curves.png, search.log and search.db (Optuna's) to its folder. Continue an interrupted search with --resume.
"""


def parse(argv: list[str]) -> tuple[argparse.Namespace, Overrides]:
    """Parses the flags and the overrides of the recipe."""
    parser = make_parser(
        "python -m sft_jax.search", "Searches the hyper-parameters with the best validation score.", EXAMPLE
    )
    add_config_flags(parser)
    parser.add_argument(
        "--space", action="append", required=True, metavar="KEY=FORM", help="a key to search over (repeatable)"
    )
    parser.add_argument("--trials", type=_positive, default=16, help="number of trials (default: %(default)s)")
    parser.add_argument(
        "--folds",
        type=_positive,
        default=1,
        help="score by stratified cross-validation with this many folds of the training split; 1: score on the "
        "validation split (default: %(default)s)",
    )
    parser.add_argument(
        "--sampler",
        choices=("tpe", "random", "grid"),
        default="tpe",
        help="how to choose trials: Tree-structured Parzen Estimator, at random, or on a grid (default: %(default)s)",
    )
    parser.add_argument(
        "--pruner",
        choices=("none", "median", "asha"),
        default="none",
        help="stop trials early that lag behind others at the same epoch; with a decaying schedule, high learning "
        "rates often lag at first but win in the end (default: %(default)s)",
    )
    parser.add_argument(
        "--at-once",
        type=_positive,
        metavar="N",
        help="train N trials simultaneously if they differ only in continuous settings (default: 8 if measured to be "
        "faster and it fits into memory, otherwise 1)",
    )
    parser.add_argument(
        "--workdir", type=Path, metavar="RUN", help="output folder (default: runs/search_<config name>)"
    )
    parser.add_argument("--resume", action="store_true", help="continue the search in the workdir")
    return parse_with_overrides(parser, argv)


def main() -> None:
    """Parses the command line and searches."""
    args, overrides = parse(sys.argv[1:])
    # Imported after parsing, as in `main.py`.
    keep_freed_memory()
    keep_compiled_programs()
    from sft_jax.config import load_config
    from sft_jax.config.recipe import config_name
    from sft_jax.run.console import Console
    from sft_jax.search.session import Options, search
    from sft_jax.search.space import Space

    space = Space(args.space)
    config = load_config(args.config, overrides)
    folder = args.workdir or Path("runs") / f"search_{config_name(args.config)}"
    names = ("trials", "folds", "sampler", "pruner", "at_once", "resume")
    options = Options(**{name: getattr(args, name) for name in names}, command=sys.argv)
    search(config, space, folder, options, Console())


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


if __name__ == "__main__":
    from sft_jax.errors import run_command

    sys.exit(run_command(main))
