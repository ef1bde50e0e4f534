"""Writes configs/README.md, the table of all config keys, from the schema: `python -m sft_jax.config.docs`."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft_jax.config.schema import KEYS, KIND_WORDS, Key, Pairs, Patterns
from sft_jax.errors import UserError, run_command

PATH = Path("configs", "README.md")

HEAD = """# Configuration

A recipe is a Python file with `get_config(arg="")`; those of this folder say in their first lines how they are run and
what to expect. Every key can also be set on the command line, as in `--config.epochs=20` or
`--config.finetune.freeze='conv1.*;bn1.*'`; `none` takes an optional value away. A key that is not in these tables is
refused, and the nearest one is named.

This file is written by `python -m sft_jax.config.docs` from [sft_jax/config/schema.py](../sft_jax/config/schema.py).
"""

TITLES = {
    "": "The run",
    "model": "Network",
    "data": "Data and augmentation",
    "finetune": "What is trained",
    "regularization": "Regularization",
    "evaluation": "Evaluation",
    "optimizer": "Optimizer",
    "logging": "Logging",
}


def document() -> str:
    """The whole page."""
    groups: dict[str, list[str]] = {group: [] for group in TITLES}
    for name in KEYS:
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    return "\n".join([HEAD, *(line for group, names in groups.items() if names for line in _table(group, names))])


def _table(group: str, names: list[str]) -> Iterator[str]:
    yield from (
        f"## {TITLES.get(group, group)}",
        "",
        "| key | default | meaning | values |",
        "| --- | --- | --- | --- |",
    )
    for name in names:
        key = KEYS[name]
        cells = (f"`{name}`", _code(as_text(key.default)), _escaped(key.doc), _escaped(_values(key)))
        yield f"| {' | '.join(cells)} |"
    yield ""


def as_text(value: Any) -> str:
    """A value as the command line takes it, see `Key.parse`."""
    if value is None:
        return "none"
    if isinstance(value, Patterns):
        return ";".join(value)
    if isinstance(value, Pairs):
        return ";".join(f"{left}={right:g}" for left, right in value)
    if isinstance(value, tuple):
        return ",".join(f"{part:g}" for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _values(key: Key) -> str:
    kind = KIND_WORDS[key.kind]
    found = key.rule if key.rule.startswith(("one of", "pairs", "three")) else f"{kind}, {key.rule}".removesuffix(", ")
    return f"{found}, or none" if key.optional else found


def _escaped(text: str) -> str:
    """Without what Markdown would take for markup."""
    return re.sub(r"([|*_<])", r"\\\1", text)


def _code(text: str) -> str:
    return f"`{text}`" if text else "(empty)"


def main() -> None:
    """Writes the page; there are no flags."""
    if not PATH.parent.is_dir():
        raise UserError(f"there is no folder {PATH.parent} here; run this in the project's folder")
    PATH.write_text(document())
    print(f"wrote {PATH}")


if __name__ == "__main__":
    sys.exit(run_command(main))
