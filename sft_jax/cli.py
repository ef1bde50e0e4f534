"""What the command lines have in common: the recipe with its overrides, the network, errors in one line."""

import argparse
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from sft_jax.config.schema import KEYS

Overrides = list[tuple[str, str]]


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line that says what to do, like a `UserError`."""

    def error(self, message: str) -> NoReturn:
        """Exits with 2."""
        keys = [word[2:].partition("=")[0] for word in message.split() if word.startswith("--")]
        known = [key for key in keys if key in KEYS]
        if message.startswith("unrecognized") and known:
            message += f"; keys of the recipe are set with --config.{known[0]}=VALUE"
        self.exit(2, f"error: {message}; {self.prog} --help has all flags and an example\n")


def make_parser(command: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """A parser for `command`, as "python -m sft_jax.main", whose help ends with `epilog` as it stands."""
    parser = _Parser(
        prog=command,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # Shells leave the ~ of `--workdir=~/runs` as it is.
    parser.register("type", Path, lambda text: Path(os.path.expanduser(text)))
    return parser


def add_config_flags(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds --config, and --config.KEY to the help: `parse_with_overrides` takes those out."""
    options: dict[str, Any] = {"required": required, "metavar": "FILE[:ARG]"}
    parser.add_argument("--config", help="a recipe, for instance configs/cifar10.py", **options)
    parser.add_argument("--config.KEY", metavar="VALUE", help="set one key of the recipe (may be repeated)")


def add_network_flags(parser: argparse.ArgumentParser, *, workdir: str) -> None:
    """Adds --workdir, which `workdir` explains, and --weights: one of the two names a trained network."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=Path, metavar="RUN", help=workdir)
    source.add_argument("--weights", type=Path, metavar="FILE.safetensors", help="a converted file in place of a run")


def parse_with_overrides(parser: argparse.ArgumentParser, argv: Iterable[str]) -> tuple[argparse.Namespace, Overrides]:
    """The flags, and the (key, text) pairs of `--config.KEY=VALUE` or `--config.KEY VALUE`."""
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
