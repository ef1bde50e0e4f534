"""Class weights of the training loss: `regularization.class_weights`."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.errors import UserError

KEY = "regularization.class_weights"


def class_weights(setting: str, labels: np.ndarray, class_names: Sequence[str]) -> tuple[float, ...] | None:
    """Returns `weights_of` the labels int [n] of the training images."""
    return weights_of(setting, np.bincount(labels, minlength=len(class_names)), class_names)


def weights_of(setting: str, counts: np.ndarray, class_names: Sequence[str]) -> tuple[float, ...] | None:
    """Returns the weight of each class; None if the loss is not weighted.

    Args:
      setting: "none"; "balanced": images / (classes * images of the class), as in scikit-learn, and 1 for classes
        without images; or a file, see `_read`.
      counts: int [classes], training images, or pixels, of each class.
      class_names: in label order.

    Raises:
      UserError: the file cannot be read, or does not give every class a weight of 0 or more.
    """
    if setting == "none":
        return None
    if setting == "balanced":
        there, total = np.count_nonzero(counts), int(counts.sum())
        return tuple(total / (there * int(count)) if count else 1.0 for count in counts)
    by_name = _read(setting)
    unknown, missing = (
        sorted(one - other) for one, other in ((by_name.keys(), set(class_names)), (set(class_names), by_name.keys()))
    )
    if unknown or missing:
        wrong = [f"no class is called {', '.join(unknown[:5])}"] if unknown else []
        wrong += [f"{', '.join(missing[:5])} is missing"] if missing else []
        raise UserError(f"{KEY}={setting}: {'; '.join(wrong)}; give exactly one weight per class")
    for name, weight in by_name.items():
        if not 0 <= weight < math.inf:
            raise UserError(f"{KEY}={setting}: the weight of {name} is {weight:g}; it must be 0 or more")
    weights = tuple(by_name[name] for name in class_names)
    if not np.dot(weights, counts):
        raise UserError(f"{KEY}={setting}: all classes with images have weight 0; give one of them a positive weight")
    return weights


def check_weights(record: Mapping[str, Any], weights: tuple[float, ...] | None, file: str | None, run: Path) -> None:
    """Raises UserError if the weights of `file` differ from those in `record`, the config.json of `run`."""
    recorded = record.get("class_weights")
    if recorded is not None and tuple(recorded) != weights:
        raise UserError(
            f"{KEY}={file}: the weights have changed since {run} began; restore them, or start a new run with another "
            f"--workdir"
        )


def _read(file: str) -> dict[str, float]:
    """Reads a JSON object {name: weight}, or CSV lines name,weight with or without a header. Raises UserError."""
    path = Path(file).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"{KEY}={file} must be none, balanced or a readable file: {reason}") from None
    try:
        return _of_json(text) if text.lstrip().startswith("{") else _of_csv(text)
    except (ValueError, TypeError) as error:
        raise UserError(
            f'{KEY}={file} is neither a JSON object {{"NAME": WEIGHT}} nor CSV lines NAME,WEIGHT: {error}'
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
    by_name = dict(pairs)
    if len(by_name) < len(pairs):
        raise ValueError("it lists a class twice")
    return by_name
