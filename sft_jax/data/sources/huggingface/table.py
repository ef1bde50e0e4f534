"""A table of images with typed columns, as metadata files and Parquet files give it."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Kinds of columns that can label an image: one class, a text, a whole or any other number, lists of the first three.
CLASS, TEXT, WHOLE, NUMBER = "class", "text", "whole number", "number"
CLASSES, TEXTS = "classes", "texts"


class Feature(NamedTuple):
    """A column's type.

    Attributes:
      kind: one of those above; None if it cannot be a label.
      names: of the classes, which cells are indices of; only of the kinds CLASS and CLASSES.
    """

    kind: str | None
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """One row per image.

    Attributes:
      place: what the user named.
      features: name of a column -> its type; without the column of the images.
      parts: the split of each row: "train", "val" or "test"; None if there are none.
      values: name of a column -> its cells as Python values, None where one is empty.
      files: returns the folder that names are relative to, and the name of each row's file.
    """

    place: Path
    features: dict[str, Feature]
    parts: Sequence[str | None]
    values: Callable[[str], Sequence[Any]]
    files: Callable[[], tuple[Path, Sequence[str]]]
