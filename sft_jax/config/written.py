"""Writes a configuration as a recipe, a Python file like those in configs/."""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from sft_jax.config.recipe import flatten
from sft_jax.config.schema import KEYS


def recipe(config: ConfigDict, *, docstring: str, about: str, marks: Mapping[str, str]) -> str:
    """Returns a recipe with all settings of `config` that are not the defaults.

    Args:
      config: the configuration.
      docstring: of the file.
      about: docstring of `get_config`, one line.
      marks: key -> comment after its line; these keys are also written if they have their defaults.
    """
    lines = [
        f'"""{_quoted(docstring)}',
        '"""',
        "",
        "from ml_collections import ConfigDict",
        "",
        "from sft_jax.config import check_argument, default_config",
        "",
        "",
        'def get_config(arg: str = "") -> ConfigDict:',
        f'    """{_quoted(about)}"""',
        "    check_argument(arg)",
        "    config = default_config()",
    ]
    for key, value in flatten(config).items():
        if key in marks or value != KEYS[key].default:
            mark = f"  # {marks[key]}" if key in marks else ""
            lines.append(f"    config.{key} = {_literal(value)}{mark}")
    return "\n".join([*lines, "    return config", ""])


def _literal(value: Any) -> str:
    """Returns a config value as Python code. Strings are quoted by JSON, for double quotes as in other recipes."""
    if isinstance(value, tuple):
        return f"({''.join(_literal(part) + ', ' for part in value).rstrip()})"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    """Escapes text for use between triple quotes."""
    return text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
