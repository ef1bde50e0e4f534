"""Labelled image files: as a source lists them, and as a run records them."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Files named in a message.
NAMED = 3


class LabelledFile(NamedTuple):
    """An image file and its label.

    Attributes:
      name: its path relative to the root of its listing, with slashes.
      key: the same relative to the folder that lists the classes, where parts have one each: what it is known by.
      class_name: its label.
      part: "train", "val" or "test"; None where the source does not say.
    """

    name: str
    key: str
    class_name: str
    part: str | None


# Of each part its files.
Parts = dict[str, list[LabelledFile]]


@dataclasses.dataclass(frozen=True)
class Listing:
    """The image files of a source.

    Attributes:
      root: the folder to which names are relative.
      place: what the user named: a folder or a table.
      class_names: label = position.
      files: sorted by part and class.
    """

    root: Path
    place: Path
    class_names: tuple[str, ...]
    files: list[LabelledFile]


@dataclasses.dataclass(frozen=True)
class Record:
    """What a run records of its images.

    Attributes:
      class_names: label = position.
      place: where the images were, the absolute path of what `data.source` or `data.dir` named; None: not known.
      root: the absolute path of the folder to which names are relative; None of what are no files.
      parts: part -> for each class the names of its files and their sizes in bytes; None of what are no files.
    """

    class_names: tuple[str, ...]
    place: str | None = None
    root: str | None = None
    parts: Mapping[str, Sequence[Mapping[str, int]]] | None = None

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, contents: Mapping[str, Any]) -> "Record":
        """Of what `to_json` gave."""
        return cls(**{**contents, "class_names": tuple(contents["class_names"])})

    def sizes(self, *parts: str) -> dict[str, int]:
        """Name -> size in bytes of all files of `parts`."""
        found = self.parts or {}
        return {name: size for part in parts for files in found.get(part, ()) for name, size in files.items()}


def some(names: Iterable[str]) -> str:
    """The first names of many, for a message."""
    listed = list(names)
    more = f" and {len(listed) - NAMED:,} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more


def counted(number: int, what: str = "image") -> str:
    """`1 image`, `2,000 images`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
