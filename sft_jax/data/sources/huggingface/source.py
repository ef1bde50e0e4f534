"""The source of image sets in the forms of Hugging Face: hf:PATH, or hf://OWNER/NAME of the hub."""

from collections.abc import Collection
from pathlib import Path

from sft_jax.data.images.files import find_images
from sft_jax.data.sources.folder import list_folder
from sft_jax.data.sources.huggingface.labels import class_names, label_columns, read_labels
from sft_jax.data.sources.huggingface.metadata import metadata_files, read_metadata
from sft_jax.data.sources.huggingface.parquet import SUFFIX, parquet_files, read_parquet
from sft_jax.data.sources.huggingface.table import Table
from sft_jax.data.sources.listing import Label, LabelledFile, Listing, counted, some
from sft_jax.data.sources.table_labels import in_order, without_duplicates
from sft_jax.errors import UserError

# Written by `Dataset.save_to_disk`, which only `datasets` reads.
SAVED = ("dataset_dict.json", "state.json")


def list_huggingface(
    place: Path,
    notices: list[str],
    *,
    image_key: str | None = None,
    label_key: str | None = None,
    group_key: str | None = None,
    known: Collection[str] | None = None,
    labelling: str = "class",
) -> Listing:
    """Lists the images of a folder with metadata files, with Parquet files, or with folders of classes; or of one file.

    The images of Parquet files are unpacked first, see `unpacking`.

    Args:
      place: the folder, or a Parquet file.
      notices: receives a line about the columns used, and about what is ignored.
      image_key: the column of the images, of Parquet files with several; None: guessed.
      label_key: the column of the labels; None: guessed.
      group_key: the column that says what an image belongs to, e.g. a patient; None: none is read.
      known: classes of a network to be evaluated; a single class is then enough.
      labelling: a key of `LABELLINGS`: what an image's label is.

    Raises:
      UserError: the images or labels are missing or not valid, or it is not clear which are meant.
    """
    try:
        table = _table(place, image_key, notices)
        if table is None:
            if labelling == "classes" or group_key is not None:
                raise UserError(f"{place} has at most folders of classes, and neither metadata nor Parquet files")
            return list_folder(place, notices, known)
        return _listing(table, label_key, group_key, known, labelling, notices)
    except OSError as error:
        raise UserError(f"{error.filename or place} cannot be read: {error.strerror}") from None


def image_files(place: Path, image_key: str | None, notices: list[str]) -> list[Path]:
    """Returns the image files of a set, which need no labels. Arguments and errors are those of `list_huggingface`."""
    try:
        table = _table(place, image_key, notices)
        if table is None:
            return find_images(place).images
        root, names = table.files()
    except OSError as error:
        raise UserError(f"{error.filename or place} cannot be read: {error.strerror}") from None
    return [root / name for name in names]


def _table(place: Path, image_key: str | None, notices: list[str]) -> Table | None:
    """Returns the table of a set; None if there are neither metadata nor Parquet files."""
    if place.is_file():
        if place.suffix.lower() != SUFFIX:
            raise UserError(f"data.source=hf:{place} is no Parquet file; name one, or the folder of a set")
        return read_parquet(place, image_key, notices)
    if not place.is_dir():
        raise UserError(f"data.source=hf:{place}: no such folder; for a set of the hub, use hf://OWNER/NAME")
    described, parquet = metadata_files(place), parquet_files(place)
    if described and parquet:
        raise UserError(f"{place} has {described[0].name} and Parquet files such as {parquet[0]}; keep one of them")
    if described:
        return read_metadata(place, described, notices)
    if parquet:
        return read_parquet(place, image_key, notices)
    saved = [name for name in SAVED if (place / name).exists()]
    if saved:
        raise UserError(
            f"{place} was written by `save_to_disk`; write it as Parquet instead: "
            f"datasets.load_from_disk({str(place)!r})['train'].to_parquet('train.parquet'), likewise the other splits"
        )
    return None


def _listing(
    table: Table,
    label_key: str | None,
    group_key: str | None,
    known: Collection[str] | None,
    labelling: str,
    notices: list[str],
) -> Listing:
    columns = label_columns(table, labelling, label_key)
    groups = _groups(table, group_key)
    unread = [name for name in table.features if name not in (*columns, group_key)]
    rest = f"; columns ignored: {some(map(repr, unread))}" if unread else ""
    notices.append(f"{table.place}: labels from {some(map(repr, columns))}{rest}")
    labels = read_labels(table, labelling, columns, notices)
    kept = _labelled(table, labels, columns, notices)
    root, names = table.files()
    files: list[LabelledFile] = []
    for row in kept:
        label = labels[row]
        assert label is not None
        files.append(LabelledFile(names[row], names[row], label, table.parts[row], groups[row]))
    distinct = without_duplicates(table.place, files, notices)
    found = class_names(table, labelling, columns, distinct, known, notices)
    return Listing(root, table.place, found, in_order(distinct, labelling, found), labelling)


def _groups(table: Table, group_key: str | None) -> list[str | None]:
    if group_key is None:
        return [None] * len(table.parts)
    if group_key not in table.features:
        raise UserError(
            f"--group {group_key}: {table.place} has no such column, only {some(map(repr, table.features))}"
        )
    return [None if cell is None else str(cell) for cell in table.values(group_key)]


def _labelled(table: Table, labels: list[Label | None], columns: list[str], notices: list[str]) -> list[int]:
    """Returns the rows that have a label. Raises UserError if none has."""
    rows = [row for row, label in enumerate(labels) if label is not None]
    if not rows:
        raise UserError(
            f"{table.place} has no labels in column {columns[0]!r}; name another with --config.data.label_key=NAME"
        )
    for part in dict.fromkeys(table.parts):
        here = [label for label, other in zip(labels, table.parts, strict=True) if other == part]
        missing = sum(label is None for label in here)
        if missing == len(here):
            notices.append(
                f"{table.place}: the {part} split ignored, because none of its {counted(len(here))} has a label"
            )
        elif missing:
            notices.append(f"{table.place}: {counted(missing, 'row')} of {part or 'the set'} without a label skipped")
    return rows
