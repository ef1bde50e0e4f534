"""Trains without a recipe: `python -m sft_jax.fit PATH --minutes 20`."""

import argparse
import shlex
import sys
import time
from pathlib import Path

from sft_jax import main as training
from sft_jax.cli import Overrides, make_parser, parse_with_overrides
from sft_jax.errors import StoppedError, UserError, run_command
from sft_jax.runtime.accelerators import PLATFORMS, use_platform
from sft_jax.runtime.allocator import keep_freed_memory
from sft_jax.runtime.cache import keep_compiled_programs

EXAMPLE = """examples:
  python -m sft_jax.fit flowers --minutes 20
  python -m sft_jax.fit csv:photos.csv --minutes 60 --config.task=multilabel --workdir runs/labels

Looks at the data, chooses pretrained weights, image size, method and batch size, measures a few steps on this machine,
and trains as many epochs as the time allows, reading, compiling and the report included. It says what it chose and why,
and writes it as a recipe into the folder of the run. Settings given with --config.KEY are kept.
"""
RECIPE = "recipe.py"


def parse(argv: list[str]) -> tuple[argparse.Namespace, Overrides]:
    """Parses the flags and the settings that the user gives."""
    parser = make_parser("python -m sft_jax.fit", "Trains the best network that a time allows.", EXAMPLE)
    parser.add_argument("path", metavar="PATH", help="the data: a folder, a table, or folder:, csv:, tfds:NAME, digits")
    parser.add_argument("--minutes", type=float, metavar="N", required=True, help="time for everything")
    parser.add_argument("--workdir", type=Path, metavar="RUN", help="folder of the run (default: runs/<name>_fit)")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="PATH",
        help="pretrained weights: a converted file, a folder of them, a run or package:NAME (default: the best of "
        "installed packages and converted files in weights/)",
    )
    parser.add_argument(
        "--platform", choices=PLATFORMS, help="require this platform (default: the fastest one available)"
    )
    parser.add_argument("--config.KEY", metavar="VALUE", help="settle a key of the recipe (repeatable)")
    args, overrides = parse_with_overrides(parser, argv)
    if not args.minutes > 0:
        parser.error(f"--minutes {args.minutes:g} must be greater than 0")
    return args, overrides


def main() -> None:
    """Settles a run, writes its recipe, and trains it as `sft_jax.main` does."""
    began = time.perf_counter()
    args, overrides = parse(sys.argv[1:])
    # Imported after parsing, as in `main.py`.
    keep_freed_memory()
    keep_compiled_programs()
    from sft_jax.config.recipe import load_config, parse_value
    from sft_jax.config.written import recipe
    from sft_jax.fit.session import Session
    from sft_jax.fit.sight import named_source
    from sft_jax.run.console import Console, duration
    from sft_jax.run.folder import Run
    from sft_jax.runtime.files import write_text

    if args.platform is not None:
        use_platform(args.platform)
    source = named_source(args.path)
    folder = args.workdir or Path("runs") / f"{Path(source.partition(':')[2] or source).stem}_fit"
    file = folder / RECIPE
    platform = [] if args.platform is None else ["--platform", args.platform]
    flags = ["--config", str(file), "--workdir", str(folder), *platform]
    command = shlex.join(["python", "-m", "sft_jax.main", *flags])
    if Run(folder).exists():
        raise UserError(f"{folder} already contains a run; use another --workdir, or continue it: {command} --resume")
    console = Console()
    given = {name: parse_value(name, text) for name, text in overrides}
    settled = Session(source, given, args.minutes, began, args.weights, console).settle()
    words = [f"{topic:<10} {text}" for topic, text in settled.lines]
    said = f"Chosen by sft_jax.fit for {args.minutes:g} minutes."
    docstring = "\n".join([said, "", f"    {command}", "", *words])
    write_text(file, recipe(settled.config, docstring=docstring, about=said, marks={}))
    expected = time.perf_counter() - began + settled.seconds
    time_line = f"time       about {duration(expected)} of {duration(60 * args.minutes)} minutes in all"
    for line in (*words, time_line, f"recipe     {file}; if it is stopped: {command} --resume"):
        console.line(line)
    # What follows is that command, which the run records.
    sys.argv = [training.__file__, *flags]
    try:
        run_args, _ = training.parse(flags)
        training.train(load_config(run_args.config), run_args)
    except StoppedError as error:
        done = str(error).partition(";")[0]
        raise StoppedError(f"{done}; the state is saved, continue with: {command} --resume") from None
    taken = time.perf_counter() - began
    console.line(f"time       {duration(taken)} of {duration(60 * args.minutes)} minutes")


if __name__ == "__main__":
    sys.exit(run_command(main))
