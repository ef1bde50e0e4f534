"""Labelled image files, as listed by a source and as recorded by a run."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sft_jax.data.images.segments import Segments

# A class, the classes, or the number of an image, or the name and the digest of its mask, see `labelling`.
Label = str | tuple[str, ...] | float

# Maximum number of names in a message.
NAMED = 3


class LabelledFile(NamedTuple):
    """An image file and its label.

    Attributes:
      name: its path relative to the root of its listing, with forward slashes.
      key: its path relative to the folder of the classes (that of its split, if splits have folders); identifies it.
      label: its class, or what `labelling` the listing has.
      part: its split: "train", "val" or "test"; None if the source does not say.
      group: what it belongs to, e.g. a patient; None if the source was not asked or does not say.
    """

    name: str
    key: str
    label: Label
    part: str | None
    group: str | None = None


# Split -> its files.
Parts = dict[str, list[LabelledFile]]


@dataclasses.dataclass(frozen=True)
class Listing:
    """The image files, or texts, of a source.

    Attributes:
      root: the folder that names are relative to.
      place: the folder or table that the user named.
      class_names: in label order.
      files: sorted by split and class.
      labelling: a key of `labelling.LABELLINGS`: what labels are.
      unit: what messages call one of them.
      segments: of panoptic masks, by the names of their files.
    """

    root: Path
    place: Path
    class_names: tuple[str, ...]
    files: list[LabelledFile]
    labelling: str = "class"
    unit: str = "image"
    segments: Mapping[str, Segments] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Record:
    """A run's record of its images or texts.

    Attributes:
      class_names: in label order.
      place: absolute path of what `data.source` or `data.dir` named; None if unknown.
      root: absolute path of the folder that names are relative to; None if the images are not files.
      parts: split -> for each class, file name -> size in bytes; None if the images are not files.
      labels: what `parts` has an entry for, if that is not each class: all labels that occur.
      digests: split -> digest of its tokens and labels; None if it has no texts.
      buckets: see `Lengths`; None if it has no texts.
    """

    class_names: tuple[str, ...]
    place: str | None = None
    root: str | None = None
    parts: Mapping[str, Sequence[Mapping[str, int]]] | None = None
    labels: tuple[Label, ...] | None = None
    digests: Mapping[str, str] | None = None
    buckets: tuple[int, ...] | None = None

    @property
    def groups(self) -> tuple[Label, ...]:
        """The labels that `parts` has entries for, in this order."""
        return self.class_names if self.labels is None else self.labels

    def to_json(self) -> dict[str, Any]:
        """Returns the attributes as a JSON object, the inverse of `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, contents: Mapping[str, Any]) -> "Record":
        """Builds a record from the output of `to_json`."""
        labels = contents.get("labels")
        if labels is not None:
            labels = tuple(tuple(label) if isinstance(label, list) else label for label in labels)
        names, ends = tuple(contents["class_names"]), contents.get("buckets")
        return cls(**{**contents, "class_names": names, "labels": labels, "buckets": ends and tuple(ends)})

    def sizes(self, *parts: str) -> dict[str, int]:
        """Maps the names of all files of the splits `parts` to their sizes in bytes."""
        recorded = self.parts or {}
        return {name: size for part in parts for files in recorded.get(part, ()) for name, size in files.items()}


def some(names: Iterable[str]) -> str:
    """Joins the first few names and counts the rest, for a message."""
    listed = list(names)
    more = f" and {len(listed) - NAMED:,} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more


def counted(number: int, what: str = "image") -> str:
    """Formats a count with its noun: "1 image", "2,000 images"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
