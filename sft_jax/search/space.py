"""The search space: config keys with the ranges or choices given by `--space`."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from sft_jax.config import complete, flatten
from sft_jax.config.recipe import parse_value
from sft_jax.config.schema import KEYS
from sft_jax.errors import UserError
from sft_jax.models.packages import PREFIX, installed
from sft_jax.models.weights import load_weights
from sft_jax.run.folder import Run

FORMS = "KEY=log(LOW,HIGH), KEY=linear(LOW,HIGH), KEY=int(LOW,HIGH) or KEY=choice(ONE,TWO,...)"

# A point of the space: config key -> number, or string for a choice.
Point = Mapping[str, float | int | str]


@dataclasses.dataclass(frozen=True)
class Dimension:
    """A config key to search over.

    Attributes:
      key: its dotted name.
      form: "log", "linear", "int" or "choice".
      low, high: inclusive bounds of the range; 0 for choices.
      choices: the choices as strings, as on the command line.
    """

    key: str
    form: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()

    def value(self, entry: float | int | str) -> Any:
        """Converts the entry of a point to the key's value."""
        return parse_value(self.key, str(entry)) if self.form == "choice" else entry

    def ends(self) -> tuple[float | int | str, ...]:
        """Returns the entries that need to be validated: both ends of a range, or every choice."""
        return self.choices if self.form == "choice" else (self._number(self.low), self._number(self.high))

    def grid(self, points: int) -> list[float | int | str]:
        """Returns equally spaced entries: `points` of a continuous range, otherwise all."""
        if self.form == "choice":
            return list(self.choices)
        if self.form == "int":
            return list(range(int(self.low), int(self.high) + 1))
        spaced = np.geomspace if self.form == "log" else np.linspace
        return [float(value) for value in spaced(self.low, self.high, points)]

    @property
    def continuous(self) -> bool:
        """Whether the range is continuous."""
        return self.form in ("log", "linear")

    def _number(self, value: float) -> float | int:
        return int(value) if self.form == "int" else value

    def __str__(self) -> str:
        inner = self.choices if self.form == "choice" else (f"{self.low:g}", f"{self.high:g}")
        return f"{self.key}={self.form}({','.join(inner)})"


class Space:
    """All dimensions of a search.

    Raises:
      UserError: one of `texts`, the values of `--space`, is malformed, or invalid for its key.
    """

    def __init__(self, texts: Iterable[str]):
        self.dimensions = tuple(map(parse, texts))
        keys = [dimension.key for dimension in self.dimensions]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise UserError(f"--space {twice[0]} is given twice; give each key once")
        if {"init", "model.name"} <= set(keys):
            raise UserError("--space init already sets the network of each choice; remove --space model.name")

    def config(self, base: ConfigDict, point: Point) -> ConfigDict:
        """Returns `base` with the values of a point. Raises UserError if they are invalid."""
        values = {dimension.key: dimension.value(point[dimension.key]) for dimension in self.dimensions}
        if values.get("init", "scratch") != "scratch":
            values["model.name"] = _network_of(values["init"])
        return complete(flatten(base) | values)

    def corners(self) -> Iterable[Point]:
        """Yields points that cover every choice and both ends of every range; the first has the first of each."""
        first = {dimension.key: dimension.ends()[0] for dimension in self.dimensions}
        yield first
        for dimension in self.dimensions:
            yield from (first | {dimension.key: entry} for entry in dimension.ends()[1:])

    def grid(self, trials: int) -> list[Point]:
        """Returns the grid of equally spaced values, of at most `trials` points. Raises UserError if it is larger."""
        finite = math.prod(len(dimension.grid(0)) for dimension in self.dimensions if not dimension.continuous)
        open_ended = sum(dimension.continuous for dimension in self.dimensions)
        points = _root(trials // finite, open_ended) if open_ended else 1
        if finite > trials or (open_ended and points < 2):
            needed = finite * 2**open_ended
            raise UserError(f"--trials {trials} is too few for the grid; use --trials {needed} or more")
        columns = [dimension.grid(points) for dimension in self.dimensions]
        keys = [dimension.key for dimension in self.dimensions]
        return [dict(zip(keys, entries, strict=True)) for entries in itertools.product(*columns)]

    def __str__(self) -> str:
        return ", ".join(map(str, self.dimensions))


def parse(text: str) -> Dimension:
    """Parses `KEY=FORM(...)`. Raises UserError if it is malformed, or invalid for the key."""
    match = re.fullmatch(r"\s*([\w.]+)\s*=\s*(log|linear|uniform|int|choice)\((.*)\)\s*", text)
    if match is None:
        raise UserError(f"--space {text!r} is not of the form {FORMS}")
    key, form, inner = match[1], match[2].replace("uniform", "linear"), match[3]
    parts = [part.strip() for part in re.split(r",(?![^(\[]*[)\]])", inner) if part.strip()]
    if form == "choice":
        if len(set(parts)) < 2:
            raise UserError(f"--space {text!r} needs at least two choices")
        dimension = Dimension(key, form, choices=tuple(parts))
    else:
        dimension = Dimension(key, form, *_bounds(text, form, parts))
    for entry in dimension.ends():
        complete({key: dimension.value(entry)})  # raises if the key does not exist or the value is invalid
    if dimension.continuous and KEYS[key].kind is not float:
        raise UserError(f"--space {text!r}: {key} is not a float; use int(LOW,HIGH) or choice(ONE,TWO,...)")
    return dimension


def describe(point: Point) -> str:
    """Formats a point, e.g. as `optimizer.learning_rate=0.0123 optimizer.name=sgd`."""
    return "  ".join(
        f"{key}={entry:.4g}" if isinstance(entry, float) else f"{key}={entry}" for key, entry in point.items()
    )


def _bounds(text: str, form: str, parts: Sequence[str]) -> tuple[float, float]:
    kind = int if form == "int" else float
    try:
        low, high = map(kind, parts)
    except ValueError:
        raise UserError(
            f"--space {text!r} needs two {'integers' if kind is int else 'numbers'}: {form}(LOW,HIGH)"
        ) from None
    if not low < high < math.inf or (form == "log" and low <= 0):
        raise UserError(f"--space {text!r} needs {'0 < ' if form == 'log' else ''}LOW < HIGH")
    return low, high


def _network_of(init: str) -> str:
    if init.startswith(PREFIX):
        return installed(init)[0].arch
    path = Path(init)
    return Run(path).config().model.name if path.is_dir() else load_weights(path).arch


def _root(number: int, degree: int) -> int:
    """Returns the largest integer whose power `degree` is at most `number`."""
    root = round(number ** (1 / degree)) + 1
    while root**degree > number:
        root -= 1
    return root
