"""All labelled images of a source at their own sizes, one after another, with their names, splits and groups."""

import contextlib
import dataclasses
import io
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from sft_jax.data.images.formats import UNREADABLE, opened, reason
from sft_jax.data.images.named import ahead
from sft_jax.data.sources.digits import load_digits
from sft_jax.data.sources.known import check_labelling, kind_of, source_of
from sft_jax.data.sources.labelling import LABELLINGS
from sft_jax.data.sources.listing import LabelledFile, Listing, Record, counted
from sft_jax.data.sources.lists import list_files
from sft_jax.data.sources.part_names import named_part, part_of
from sft_jax.data.sources.tfds import open_records, split_names
from sft_jax.errors import UserError

R = TypeVar("R")
# A file, the content of one, or pixels uint8 [height, width, 3].
Content = Path | bytes | np.ndarray


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The labelled images of a source.

    Attributes:
      names: of the files, relative to the source's folder or absolute, or like "train[12]" if they are not files.
      labels: int32 [n].
      class_names: in label order.
      parts: the split of each, as the source names it; None where the source does not say.
      groups: what each belongs to; None where the source was not asked or does not say.
      contents: returns an iterator over all images, in order.
      max_pixels: larger images count as unreadable.
      files: their paths; None if they are not files.
    """

    unit: ClassVar[str] = "image"

    names: list[str]
    labels: np.ndarray
    class_names: tuple[str, ...]
    parts: list[str | None]
    groups: list[str | None]
    contents: Callable[[], Iterator[Content]]
    max_pixels: int
    files: list[Path] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def read(
        self, action: Callable[[Image.Image], R], problems: dict[int, str], rows: Collection[int] | None = None
    ) -> Iterator[tuple[int, R]]:
        """Yields the row of each readable image with the result of `action`, in order; decodes in threads.

        Args:
          action: called with the opened image.
          problems: receives the reason for each row that is not readable.
          rows: the rows to read; None for all.
        """
        wanted = (item for item in enumerate(self.contents()) if rows is None or item[0] in rows)

        def act(item: tuple[int, Content]) -> R:
            with self._opened(item[1]) as image:
                return action(image)

        for (row, content), reading in ahead(wanted, act):
            try:
                result = reading.result()
            except UNREADABLE as error:
                problems[row] = reason(error, content if isinstance(content, Path) else Path(self.names[row]))
                continue
            yield row, result

    @contextlib.contextmanager
    def _opened(self, content: Content) -> Iterator[Image.Image]:
        if isinstance(content, np.ndarray):
            yield Image.fromarray(content)
            return
        with opened(io.BytesIO(content) if isinstance(content, bytes) else content, self.max_pixels) as image:
            yield image

    def divided_as(self, record: Record, notices: list[str]) -> "Pictures":
        """Returns them with the splits that a run recorded, for files of which the source does not say it."""
        if self.files is None or record.root is None or None not in self.parts:
            return self
        recorded = {Path(record.root, name): part for part in record.parts or {} for name in record.sizes(part)}
        parts = [part or recorded.get(path.absolute()) for part, path in zip(self.parts, self.files, strict=True)]
        added = sum(new is not None for new in parts) - sum(old is not None for old in self.parts)
        if added:
            notices.append(f"splits of {counted(added)} as recorded by the run")
        return dataclasses.replace(self, parts=parts)


def load_pictures(
    config: ConfigDict, notices: list[str], *, split: str | None = None, group_key: str | None = None
) -> Pictures:
    """Lists the images of `config.source`, laid out as for training.

    Args:
      config: the section `data` of the config.
      notices: receives a line about anything that is skipped or guessed.
      split: the only split to use, for tfds any split expression; None for all.
      group_key: the column of a table that says what an image belongs to, e.g. a patient.

    Raises:
      UserError: there are no images or labels, or the source has no groups.
    """
    kind, rest = kind_of(config)
    check_labelling(config, "class")
    if source_of(config).of_files:
        listing = list_files(kind, rest, config, notices, group_key=group_key)
        files = [file for file in listing.files if split is None or file.part == named_part(split)]
        if not files:
            raise UserError(f"{rest} has no {split} split; drop --split to use all of its images")
        return _of_files(listing, files, config)
    if group_key is not None:
        raise UserError(f"--group {group_key} needs a table with such a column, data.source=csv:FILE")
    if kind == "tfds":
        return _of_records(rest, config, split, notices)
    dataset = load_digits(config.source)
    parts = {"train": dataset.train, "val": dataset.validation, "test": dataset.test}
    chosen = {name: part for name, part in parts.items() if split is None or name == named_part(split)}
    images = {name: next(part.batches(np.arange(len(part))[None]))["image"] for name, part in chosen.items()}
    return Pictures(
        [f"{name}[{row}]" for name, part in chosen.items() for row in range(len(part))],
        np.concatenate([part.labels for part in chosen.values()]),
        dataset.class_names,
        [name for name, part in chosen.items() for _ in range(len(part))],
        [None] * sum(map(len, chosen.values())),
        lambda: (image for part in images.values() for image in part),
        config.max_pixels,
    )


def _of_files(listing: Listing, files: list[LabelledFile], config: ConfigDict) -> Pictures:
    paths = [listing.root / file.name for file in files]
    place = listing.place.absolute()
    # A table's files may be in other folders than its own.
    elsewhere = listing.root.absolute() not in (place, place.parent)
    return Pictures(
        [str(path) for path in paths] if elsewhere else [file.name for file in files],
        LABELLINGS["class"].targets([file.label for file in files], listing.class_names)["label"],
        listing.class_names,
        [file.part for file in files],
        [file.group for file in files],
        lambda: iter(paths),
        config.max_pixels,
        paths,
    )


def _of_records(name: str, config: ConfigDict, split: str | None, notices: list[str]) -> Pictures:
    where = {"directory": config.dir, "download": config.download}
    keys = {"image_key": config.image_key, "label_key": config.label_key}
    records, told = open_records(name, **where, **keys)
    notices += told
    splits = [split] if split else split_names(name, **where)
    labels: dict[str, list[int]] = {each: [label for _, label in records.encoded("test", each)] for each in splits}
    for each in splits:
        if min(labels[each]) < 0 and len(splits) > 1:
            notices.append(f"split {each!r} of tfds:{name} skipped: it has images without a label")
    usable = [each for each in splits if min(labels[each]) >= 0]
    if not usable:
        raise UserError(f"tfds:{name} has images without a label; name a labelled split with --split")
    # Of a slice such as train[:100], the split; of a sum, none.
    parts = {each: None if "+" in each else part_of(each.partition("[")[0]) or each for each in usable}
    if None in parts.values():
        notices.append(f"--split {split}: its parts are not told apart, so that leaks between them count as duplicates")
    return Pictures(
        [f"{each}[{row}]" for each in usable for row in range(len(labels[each]))],
        np.array([label for each in usable for label in labels[each]], np.int32),
        records.class_names,
        [parts[each] for each in usable for _ in labels[each]],
        [None] * sum(len(labels[each]) for each in usable),
        lambda: (image for each in usable for image, _ in records.encoded("test", each)),
        config.max_pixels,
    )
