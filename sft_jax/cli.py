"""Shared parts of the command lines: recipe and overrides, choice of network, one-line errors."""

import argparse
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sft_jax.config.schema import KEYS
from sft_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Overrides = list[tuple[str, str]]
# Keys of the location and structure of data other than a run's.
SOURCE_KEYS = ("data.dir", "data.download", "data.image_key", "data.label_key", "data.part_key")
# The same, where it may be texts.
WITH_TEXTS = (*SOURCE_KEYS, "text.columns")
# The same, where images may have masks.
OTHERS_KEYS = (*WITH_TEXTS, "data.ignore_index")


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


def add_network_flags(parser: argparse.ArgumentParser, *, workdir: str, required: bool = True) -> None:
    """Adds --workdir (with `workdir` as its help) and --weights, at most one of which names a trained network."""
    source = parser.add_mutually_exclusive_group(required=required)
    source.add_argument("--workdir", type=Path, metavar="RUN", help=workdir)
    source.add_argument(
        "--weights",
        type=Path,
        metavar="FILE.safetensors",
        help="a converted file instead of a run, or installed weights, e.g. package:efficientnet-lite0",
    )


def add_checkpoint_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --checkpoint, which chooses one of a run's checkpoints."""
    parser.add_argument(
        "--checkpoint", choices=("best", "latest"), default="best", help="checkpoint of the run (default: %(default)s)"
    )


def add_view_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --windows and --flips, which say how a network of pixels sees pictures, see `inference.windows.View`."""
    parser.add_argument(
        "--windows",
        type=_whole,
        metavar="PIXELS",
        help="for a class per pixel: resize the shorter side of pictures to PIXELS, 0 for their own size, and see them "
        "through overlapping windows as large as the whole pictures that the network was trained on",
    )
    parser.add_argument(
        "--flips", action="store_true", help="for a class per pixel: average with the picture's mirror image"
    )


def _whole(text: str) -> int:
    """Parses a whole number from 0. Raises ArgumentTypeError."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 0 or more")
    return int(text)


def check_view_flags(args: argparse.Namespace, *, dense: bool) -> None:
    """Raises UserError if a flag of `add_view_flags` is given for another network than one of pixels."""
    given = [
        flag for flag, value in (("--windows", args.windows), ("--flips", args.flips or None)) if value is not None
    ]
    if given and not dense:
        raise UserError(f"{given[0]} is for networks with a class per pixel, which this one is not")


def add_source_flags(parser: argparse.ArgumentParser, known: Sequence[str] = SOURCE_KEYS) -> None:
    """Adds --data, --split, and --config.KEY of keys that are `known` for the help, see `add_config_flags`."""
    forms = "the images: folder:PATH, csv:FILE, hf:PATH, tfds:NAME, digits"
    forms += "; or the texts: text:PATH, tfds:NAME" if known == WITH_TEXTS else ""
    parser.add_argument("--data", metavar="SOURCE", required=True, help=forms)
    parser.add_argument(
        "--split", help="train, validation or test, or for tfds any split expression, e.g. 'train[:100]' (default: all)"
    )
    parser.add_argument(
        "--config.KEY",
        metavar="VALUE",
        help=f"location and structure of the data; KEY is {', '.join(known)}",
    )


def check_overrides(overrides: Overrides, known: Sequence[str], what: str) -> None:
    """Raises UserError if a key that is not `known` is set; `what` is the purpose, e.g. "evaluation"."""
    for name, _ in overrides:
        if name not in known:
            raise UserError(f"config.{name} cannot be changed for {what}; only {', '.join(known)} can be set")


def source_settings(source: str, overrides: Overrides, what: str, known: Sequence[str] = SOURCE_KEYS) -> "ConfigDict":
    """Returns a config for `source`; raises UserError like `check_overrides`."""
    from sft_jax.config import complete
    from sft_jax.config.recipe import parse_value

    check_overrides(overrides, known, what)
    return complete({"data.source": source} | {name: parse_value(name, text) for name, text in overrides})


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


def tell(notices: Iterable[str]) -> None:
    """Prints notices on standard error, because standard output may be reserved for JSON."""
    for notice in notices:
        print(notice, file=sys.stderr)


def printable(name: str) -> str:
    """Replaces bytes of a file name that are not valid UTF-8."""
    return os.fsencode(name).decode(errors="replace")
