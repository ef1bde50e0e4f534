"""The configuration: how recipes and the command line set the keys of `schema`."""

import difflib
import os
import re
import runpy
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sft_jax.config.schema import KEYS, KIND_WORDS, Key
from sft_jax.config.shipped import recipe_file
from sft_jax.errors import UserError

# Settings that are paths, or have one after a colon.
PATHS = ("init", "data.source", "data.dir")


def default_config() -> ConfigDict:
    """A configuration with every key at its default, for a recipe to change."""
    return _nested({name: key.default for name, key in KEYS.items()})


def check_argument(arg: str, *known: str) -> None:
    """For a recipe: raises UserError where its argument (`--config FILE:ARG`) is neither empty nor one of `known`."""
    if arg and arg not in known:
        wanted = f"only {', '.join(map(repr, known))}" if known else "none"
        raise UserError(f"unknown argument {arg!r} after the recipe's colon; it knows {wanted}")


def load_config(recipe: str, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """Reads a recipe and applies overrides.

    Args:
      recipe: path of a Python file with `get_config(arg="")`, or the name of one of ours, as "cifar10"; and optionally
        ":ARG" after it.
      overrides: (dotted key, text) pairs, as `--config.KEY=VALUE` gives them.

    Returns:
      The complete, checked, locked configuration.

    Raises:
      UserError: no such file, unknown keys (with the nearest known one), values of a wrong type or range.
    """
    path, _, arg = map(_home, recipe.partition(":"))
    path = str(recipe_file(path))
    if not Path(path).is_file():
        if "=" in path:
            raise UserError(
                f"--config {path} is no file; a key of a recipe is set with --config.{path} (a dot after it)"
            )
        example = f"{path}.py" if Path(f"{path}.py").is_file() else "configs/cifar10.py"
        raise UserError(f"no config file {path!r}; recipes are Python files such as {example}")
    try:
        get_config = runpy.run_path(path).get("get_config")
        found = None if get_config is None else get_config(arg)
    except UserError:
        raise
    except Exception as error:  # a recipe is Python: anything may be wrong with it
        first = next(iter(str(error).splitlines()), "")
        raise UserError(f"{path}, line {_line(error, path)}: {type(error).__name__}: {first}") from error
    if not isinstance(found, ConfigDict | Mapping):
        raise UserError(
            f"{path} has no get_config(arg='') that returns a config; see configs/cifar10.py for an example"
        )
    values = flatten(found)
    values.update((name, parse_value(name, text)) for name, text in overrides)
    return complete(values)


def complete(values: Mapping[str, Any]) -> ConfigDict:
    """The locked configuration of dotted keys `values`; the others have their defaults. Raises UserError."""
    checked = {name: key.default for name, key in KEYS.items()}
    for name, value in values.items():
        key = _key(name)
        try:
            checked[name] = key.coerce(value)
        except (TypeError, ValueError):
            raise UserError(f"config.{name}={_shown(value)} is not {KIND_WORDS[key.kind]}") from None
        if name in PATHS and isinstance(checked[name], str):
            checked[name] = _home(checked[name])
        if not key.check(checked[name]):
            raise UserError(f"config.{name}={_shown(value)} must be {key.rule}")
    return _nested(checked).lock()


def _home(text: str) -> str:
    """`text` with the user's home folder for a ~ that begins its path, after "folder:" too: no shell puts it there."""
    return re.sub(
        r"^(\w+:)?(~.*)", lambda match: (match[1] or "") + os.path.expanduser(match[2]), text, flags=re.DOTALL
    )


def flatten(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys -> values."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            flat.update({f"{name}.{inner}": leaf for inner, leaf in flatten(value).items()})
        else:
            flat[name] = value
    return flat


def config_name(recipe: str) -> str:
    """The recipe's name for a run's folder: configs/digits.py:source -> digits_source."""
    path, _, arg = recipe.partition(":")
    # The argument may hold slashes, which would lead elsewhere.
    return "_".join(part for part in (Path(path).stem, re.sub(r"[/\\]", "_", arg)) if part)


def _line(error: Exception, path: str) -> int | None:
    """The last line of the file at `path` that led to `error`."""
    if isinstance(error, SyntaxError):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if frame.filename == path), None)


def _key(name: str) -> Key:
    if name not in KEYS:
        near = difflib.get_close_matches(name, KEYS, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown config key {name!r}; did you mean {near!r}?")
    return KEYS[name]


def parse_value(name: str, text: str) -> Any:
    """The value of the key `name` that `text`, from the command line, stands for. Raises UserError."""
    key = _key(name)
    try:
        return key.parse(text)
    except (KeyError, ValueError):
        raise UserError(f"config.{name}={_shown(text)} is not {KIND_WORDS[key.kind]}") from None


def _shown(value: Any) -> str:
    """`value` for a message, which stays one line that can be read."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:100]}... ({len(text):,} characters)"


def _nested(values: Mapping[str, Any]) -> ConfigDict:
    # Types are the schema's business: ConfigDict would refuse a recipe's tuple where the default is a `Pairs`.
    config = ConfigDict(type_safe=False)
    for name, value in values.items():
        *groups, leaf = name.split(".")
        node = config
        for group in groups:
            if group not in node:
                node[group] = ConfigDict(type_safe=False)
            node = node[group]
        node[leaf] = value
    return config
