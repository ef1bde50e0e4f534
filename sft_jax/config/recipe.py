"""The configuration: sets the keys of `schema` from recipes and the command line."""

import difflib
import os
import re
import runpy
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sft_jax.config.key import KIND_WORDS, Key
from sft_jax.config.schema import KEYS
from sft_jax.config.shipped import recipe_file
from sft_jax.errors import UserError

# Keys whose values are paths, or contain one after a colon.
PATHS = ("init", "data.source", "data.dir", "text.tokenizer")


def default_config() -> ConfigDict:
    """Returns a configuration with the defaults of all keys, for recipes to change."""
    return _nested({name: key.default for name, key in KEYS.items()})


def check_argument(arg: str, *known: str) -> None:
    """Raises UserError if a recipe's argument (`--config FILE:ARG`) is neither empty nor one of `known`."""
    if arg and arg not in known:
        wanted = f"only {', '.join(map(repr, known))}" if known else "none"
        raise UserError(f"unknown argument {arg!r} after the recipe's colon; this recipe accepts {wanted}")


def load_config(recipe: str, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """Reads a recipe and applies overrides.

    Args:
      recipe: path of a Python file with `get_config(arg="")` or name of a built-in recipe, e.g. "cifar10", optionally
        followed by ":ARG".
      overrides: (dotted key, text) pairs of `--config.KEY=VALUE`.

    Returns:
      the complete, valid, locked configuration.

    Raises:
      UserError: the file does not exist, a key is unknown, or a value has the wrong type or range.
    """
    path, _, arg = map(_home, recipe.partition(":"))
    path = str(recipe_file(path))
    if not Path(path).is_file():
        if "=" in path:
            raise UserError(
                f"--config {path} is not a file; to set a key of the recipe, use --config.{path} (with a dot)"
            )
        example = f"{path}.py" if Path(f"{path}.py").is_file() else "configs/cifar10.py"
        raise UserError(f"no config file {path!r}; recipes are Python files such as {example}")
    try:
        get_config = runpy.run_path(path).get("get_config")
        config = None if get_config is None else get_config(arg)
    except UserError:
        raise
    except Exception as error:  # a recipe is arbitrary Python code
        first = next(iter(str(error).splitlines()), "")
        raise UserError(f"{path}, line {_line(error, path)}: {type(error).__name__}: {first}") from error
    if not isinstance(config, ConfigDict | Mapping):
        raise UserError(
            f"{path} has no get_config(arg='') that returns a config; see configs/cifar10.py for an example"
        )
    values = flatten(config)
    values.update((name, parse_value(name, text)) for name, text in overrides)
    return complete(values)


def complete(values: Mapping[str, Any]) -> ConfigDict:
    """Returns the locked configuration with `values` by dotted key, and defaults for the others. Raises UserError."""
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
    """Expands a leading ~, also after e.g. "folder:", which shells do not expand."""
    return re.sub(
        r"^(\w+:)?(~.*)", lambda match: (match[1] or "") + os.path.expanduser(match[2]), text, flags=re.DOTALL
    )


def flatten(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values by dotted key."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            flat.update({f"{name}.{inner}": leaf for inner, leaf in flatten(value).items()})
        else:
            flat[name] = value
    return flat


def config_name(recipe: str) -> str:
    """Derives the name of a run's folder from a recipe: configs/digits.py:source -> digits_source."""
    path, _, arg = recipe.partition(":")
    # Slashes in the argument would create subfolders.
    return "_".join(part for part in (Path(path).stem, re.sub(r"[/\\]", "_", arg)) if part)


def _line(error: Exception, path: str) -> int | None:
    """Returns the number of the last line of the file `path` in the traceback of `error`."""
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
    """Parses a value of the key `name` from the command line. Raises UserError if it is invalid."""
    key = _key(name)
    try:
        return key.parse(text)
    except (KeyError, ValueError):
        raise UserError(f"config.{name}={_shown(text)} is not {KIND_WORDS[key.kind]}") from None


def _shown(value: Any) -> str:
    """Formats a value for a message, shortened if necessary."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:100]}... ({len(text):,} characters)"


def _nested(values: Mapping[str, Any]) -> ConfigDict:
    # The schema checks types; ConfigDict would reject a recipe's tuple if the default is a `Pairs`.
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
