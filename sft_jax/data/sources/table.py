"""The CSV source: a table with one row per image, giving its file, its label and optionally its split."""

import csv
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from sft_jax.data.sources.listing import Listing, counted, some
from sft_jax.data.sources.part_names import part_of
from sft_jax.data.sources.table_files import Files, Places
from sft_jax.data.sources.table_labels import class_names, in_order, is_marked, read_labels, without_duplicates
from sft_jax.errors import UserError

DELIMITERS = ",;\t|"
# Rows used to detect the delimiter.
SAMPLE = 50
# Common column names, the most likely first; case, spaces and underscores are ignored.
USUAL = {
    "image": "file filename filepath path image imagepath imagename imagefile imageid img imgpath imgname imgid "
    "picture photo idcode fname uri id name",
    "label": "label labels labelname class classname classid category categoryname target species breed diagnosis dx "
    "disease variety tag level y",
    "number": "age count score value rating number",
    "part": "split part partition set subset usage datasplit fold",
}
# Separates the names of several columns in `label_key`; ALL stands for all that are left.
SEVERAL, ALL = ";", "*"


class Columns(NamedTuple):
    """Indices of the columns that are read; `part` and `group` are None if there are no such columns."""

    image: int
    labels: tuple[int, ...]
    part: int | None
    group: int | None


def list_table(
    path: Path,
    notices: list[str],
    *,
    image_key: str | None = None,
    label_key: str | None = None,
    part_key: str | None = None,
    group_key: str | None = None,
    known: Collection[str] | None = None,
    labelling: str = "class",
) -> Listing:
    """Reads a CSV file, delimited by commas, semicolons, tabs or vertical bars, with or without a header.

    Paths are relative to the table's folder or to a folder next to it (see `table_files`); the suffix may be missing,
    as in Kaggle's tables. Numeric labels are sorted as numbers, other labels as strings.

    Args:
      path: the file.
      notices: receives a line about the columns used, and about skipped rows.
      image_key: name of the file column, or its index from 0 if there is no header; None: guessed.
      label_key: the label column, likewise; for several labels per image also columns of 0 and 1, separated by
        semicolons, or "*" for all that are left.
      part_key: the column that says train, validation or test (see `part_of`), likewise; it may be absent.
      group_key: the column that says what an image belongs to, e.g. a patient; None: none is read.
      known: classes of a network to be evaluated; a single class is then enough.
      labelling: a key of `LABELLINGS`: what an image's label is.

    Raises:
      UserError: the table, its columns, files or labels are missing or invalid.
    """
    rows, places, keys = _rows(path), Places(path), (image_key, label_key, part_key, group_key)
    header = _header(rows, places, keys)
    body = rows[header is not None :]
    names = header or [str(number) for number in range(max(map(len, rows)))]
    columns = _columns(path, places, names, body, keys, labelling)
    labelled = [row for row in body if _has_label(row, columns, labelling)]
    label_names = [names[column] for column in columns.labels]
    if len(labelled) < len(body):
        notices.append(f"{counted(len(body) - len(labelled), 'row')} of {path} without a label skipped")
    if not labelled:
        raise UserError(f"{path} has no labels in column {label_names[0]!r}; name another with data.label_key")
    files = Files(path, places, [row[columns.image].strip() for row in labelled])
    part = "" if columns.part is None else f", split from {names[columns.part]!r}"
    notices.append(
        f"{path}: files from column {names[columns.image]!r}, labels from {some(map(repr, label_names))}{part}; "
        f"files in {files.base}"
    )
    cells = [[row[column] for column in columns.labels] for row in labelled]
    labels = read_labels(path, labelling, label_names, cells, notices)
    parts = [None if columns.part is None else part_of(row[columns.part]) for row in labelled]
    groups = [_cell(row, columns.group) for row in labelled]
    distinct = without_duplicates(path, list(files.labelled(labels, parts, groups)), notices)
    found = class_names(path, labelling, distinct, label_names, known)
    return Listing(files.root, path, found, in_order(distinct, labelling, found), labelling)


def _has_label(row: Sequence[str], columns: Columns, labelling: str) -> bool:
    """Returns whether a row is long enough and has a label; that of several may be none of them."""
    if len(row) <= max(columns.image, *columns.labels):
        return False
    return labelling == "classes" or bool(row[columns.labels[0]].strip())


def _rows(path: Path) -> list[list[str]]:
    if path.is_dir():
        raise UserError(f"data.source=csv:{path} is a folder; name a table in it, or use folder:{path}")
    if not path.is_file():
        raise UserError(f"data.source=csv:{path}: no such file")
    try:
        content = path.read_bytes()
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        if "\0" in text:
            raise ValueError("null character")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path} is not UTF-8 text; save it as CSV in UTF-8") from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path} is empty")

    def split(delimiter: str, lines: Sequence[str]) -> list[list[str]]:
        try:
            return list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
        except csv.Error as error:
            raise UserError(f"{path} is not a valid CSV file: {error}") from None

    def evidence(delimiter: str) -> tuple[int, int]:
        """Returns the number of rows that have as many columns as the first, and that number of columns."""
        rows = split(delimiter, lines[:SAMPLE])
        same = sum(len(row) == len(rows[0]) for row in rows) if len(rows[0]) > 1 else 0
        return same, len(rows[0])

    return split(max(DELIMITERS, key=evidence), lines)


def _cell(row: Sequence[str], column: int | None) -> str | None:
    """Returns the value of a row in `column`; None if it is empty or there is no such column."""
    return None if column is None or column >= len(row) else row[column].strip() or None


def plain(name: str) -> str:
    """Returns a column's name without case, spaces and underscores."""
    return re.sub(r"[\W_]+", "", name.casefold())


def _header(rows: list[list[str]], places: Places, keys: tuple[str | None, ...]) -> list[str] | None:
    """Returns the column names; None if the first row is already an image."""
    first = [cell.strip() for cell in rows[0]]
    named = [name for key in keys if key is not None for name in (key, *key.split(SEVERAL))]
    if any(key in first for key in named):
        return first
    usual = set(" ".join(USUAL.values()).split())
    if any(plain(cell) in usual for cell in first):
        return first
    return None if any(map(places.holds, first)) or len(rows) == 1 else first


def _columns(
    path: Path, places: Places, names: list[str], body: list[list[str]], keys: tuple[str | None, ...], labelling: str
) -> Columns:
    """Chooses the columns: those of `keys` (image, label, part, group) if given, else guessed. Raises UserError."""
    image_key, label_key, part_key, group_key = keys
    label_keys = [] if label_key is None else [label_key]
    if labelling == "classes" and label_key not in names:
        label_keys = [key.strip() for key in (label_key or "").split(SEVERAL) if key.strip()]
    taken = {key for key in (image_key, *label_keys, part_key, group_key) if key not in (None, ALL)}
    for key in taken:
        if key not in names:
            raise UserError(f"{path} has no column {key!r}; its columns are {', '.join(map(repr, names))}")

    def guess(what: str) -> str | None:
        free = {plain(name): name for name in reversed(names) if name not in taken}
        return next((free[name] for name in USUAL[what].split() if name in free), None)

    # The split goes first: if only two columns remain, naming one of them is enough.
    part = part_key or _guessed_part(names, body, guess("part"))
    if part is not None:
        taken.add(part)
    image = image_key or guess("image") or _column_of_files(places, names, body, taken)
    if image is not None:
        taken.add(image)
    rest = [name for name in names if name not in taken and name and not name.startswith("Unnamed:")]
    labels = rest if label_keys == [ALL] else label_keys
    if not labels and labelling == "classes" and len(rest) > 1:
        # All columns that are left, if they are of 0 and 1.
        labels = rest if all(is_marked(_cells(body, names.index(name))) for name in rest) else []
    if not labels:
        usual = (guess("number") if labelling == "number" else None) or guess("label")
        labels = [usual] if usual else rest if len(rest) == 1 else []
    for key, column, what in (("image_key", image, "files"), ("label_key", labels or None, "labels")):
        if column is None:
            raise UserError(
                f"{path}: cannot tell which column has the {what}; name it with --config.data.{key}=NAME "
                f"(columns: {', '.join(map(repr, names))})"
            )
    assert image is not None
    position = None if part is None else names.index(part)
    if position is not None:
        values = {cell.strip() for cell in _cells(body, position)}
        unknown = sorted(value for value in values if part_of(value) is None)
        if unknown:
            raise UserError(
                f"{path}: column {part!r} must say train, validation or test, not {some(map(repr, unknown))}"
            )
    group = None if group_key is None else names.index(group_key)
    return Columns(names.index(image), tuple(names.index(name) for name in labels), position, group)


def _cells(body: list[list[str]], position: int) -> list[str]:
    """Returns a column; empty where rows are too short."""
    return [row[position] if position < len(row) else "" for row in body]


def _guessed_part(names: list[str], body: list[list[str]], name: str | None) -> str | None:
    """Returns the column `name` if it contains split names; a column of cross-validation folds contains numbers."""
    if name is None:
        return None
    position = names.index(name)
    return name if any(part_of(cell) is not None for cell in _cells(body, position)) else None


def _column_of_files(places: Places, names: list[str], body: list[list[str]], taken: Collection[str]) -> str | None:
    first = zip(names, body[0] if body else (), strict=False)
    return next((name for name, cell in first if name not in taken and places.holds(cell.strip())), None)
