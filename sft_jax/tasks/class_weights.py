"""Weights of the classes in the training loss: `regularization.class_weights`."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.errors import UserError

KEY = "regularization.class_weights"


def class_weights(setting: str, labels: np.ndarray, class_names: Sequence[str]) -> tuple[float, ...] | None:
    """The weight of each class, None where all count alike.

    Args:
      setting: "none"; "balanced": images / (classes * images of the class), as scikit-learn, and 1 for a class without
        images; or a file, see `_read`.
      labels: int [n], of the training images.
      class_names: label = position.

    Raises:
      UserError: the file cannot be read, or does not give each class a number of 0 or more.
    """
    if setting == "none":
        return None
    counts = np.bincount(labels, minlength=len(class_names))
    if setting == "balanced":
        there = np.count_nonzero(counts)
        return tuple(len(labels) / (there * int(count)) if count else 1.0 for count in counts)
    found = _read(setting)
    unknown, missing = (
        sorted(one - other) for one, other in ((found.keys(), set(class_names)), (set(class_names), found.keys()))
    )
    if unknown or missing:
        wrong = [f"no class is called {', '.join(unknown[:5])}"] if unknown else []
        wrong += [f"{', '.join(missing[:5])} is missing"] if missing else []
        raise UserError(f"{KEY}={setting}: {'; '.join(wrong)}; it needs a weight for each of the classes")
    for name, weight in found.items():
        if not 0 <= weight < math.inf:
            raise UserError(f"{KEY}={setting}: the weight of {name} is {weight:g}; it must be 0 or more")
    weights = tuple(found[name] for name in class_names)
    if not np.dot(weights, counts):
        raise UserError(f"{KEY}={setting}: no class with images has a weight above 0")
    return weights


def _read(file: str) -> dict[str, float]:
    """A JSON object {name: weight}, or lines name,weight below a header or none. Raises UserError."""
    path = Path(file).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"{KEY}={file} is none of none and balanced, and no file that can be read: {reason}") from None
    try:
        return _of_json(text) if text.lstrip().startswith("{") else _of_csv(text)
    except (ValueError, TypeError) as error:
        raise UserError(
            f'{KEY}={file} holds neither a JSON object {{"NAME": WEIGHT}} nor lines NAME,WEIGHT: {error}'
        ) from None


def _of_json(text: str) -> dict[str, float]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, float]:
        return _each_once([(name, float(weight)) for name, weight in pairs])

    return json.loads(text, object_pairs_hook=once)


def _of_csv(text: str) -> dict[str, float]:
    rows = [[field.strip() for field in row] for row in csv.reader(text.splitlines()) if any(map(str.strip, row))]
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise ValueError(f"line {number} has {len(row)} fields")
    return _each_once([(name, float(weight)) for name, weight in rows[_is_header(rows) :]])


def _is_header(rows: list[list[str]]) -> bool:
    try:
        float(rows[0][1])
    except ValueError:
        return True
    except IndexError:
        raise ValueError("it is empty") from None
    return False


def _each_once(pairs: list[tuple[str, float]]) -> dict[str, float]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a class stands in it twice")
    return found
