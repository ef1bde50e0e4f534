"""Shared parts of the command lines: recipe and overrides, choice of network, one-line errors."""

import argparse
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from sft_jax.config.schema import KEYS

Overrides = list[tuple[str, str]]


class _Parser(argparse.ArgumentParser):
    """A parser that reports errors in one line that says what to do, like `UserError`."""

    def error(self, message: str) -> NoReturn:
        """Prints the error and exits with code 2."""
        keys = [word[2:].partition("=")[0] for word in message.split() if word.startswith("--")]
        known = [key for key in keys if key in KEYS]
        if message.startswith("unrecognized") and known:
            message += f"; to set a key of the recipe, use --config.{known[0]}=VALUE"
        self.exit(2, f"error: {message}; see {self.prog} --help for all flags and an example\n")


def make_parser(command: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Returns a parser for `command`, e.g. "python -m sft_jax.main"; `epilog` ends its help verbatim."""
    parser = _Parser(
        prog=command,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # Shells do not expand the ~ in `--workdir=~/runs`.
    parser.register("type", Path, lambda text: Path(os.path.expanduser(text)))
    return parser


def add_config_flags(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds --config, and --config.KEY for the help only: `parse_with_overrides` removes it before parsing."""
    options: dict[str, Any] = {"required": required, "metavar": "FILE[:ARG]"}
    parser.add_argument("--config", help="the recipe, e.g. configs/cifar10.py", **options)
    parser.add_argument("--config.KEY", metavar="VALUE", help="override a key of the recipe (repeatable)")


def add_network_flags(parser: argparse.ArgumentParser, *, workdir: str) -> None:
    """Adds --workdir (with `workdir` as its help) and --weights, exactly one of which names a trained network."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=Path, metavar="RUN", help=workdir)
    source.add_argument("--weights", type=Path, metavar="FILE.safetensors", help="a converted file, instead of a run")


def parse_with_overrides(parser: argparse.ArgumentParser, argv: Iterable[str]) -> tuple[argparse.Namespace, Overrides]:
    """Returns the parsed flags and the (key, text) pairs of all `--config.KEY=VALUE` or `--config.KEY VALUE`."""
    rest, overrides = [], []
    words = iter(argv)
    for word in words:
        match = re.fullmatch(r"--config\.([^=]+)(?:=(.*))?", word, re.DOTALL)
        if match is None:
            rest.append(word)
            continue
        value = match[2] if match[2] is not None else next(words, None)
        if value is None:
            parser.error(f"{word} needs a value")
        overrides.append((match[1], value))
    return parser.parse_args(rest), overrides
