"""The CSV source: a table with one row per image, giving its file, its label and optionally its split."""

import collections
import csv
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from sft_jax.data.sources.listing import LabelledFile, Listing, counted, some
from sft_jax.data.sources.part_names import part_of
from sft_jax.data.sources.table_files import Files, Places
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
    "part": "split part partition set subset usage datasplit fold",
}
# Separators of multiple labels; comma and space count only if every piece is itself a label of other images.
SEPARATORS = "|;, "


class Columns(NamedTuple):
    """Indices of the columns that are read; `part` and `group` are None if there are no such columns."""

    image: int
    label: int
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
) -> Listing:
    """Reads a CSV file, delimited by commas, semicolons, tabs or vertical bars, with or without a header.

    Paths are relative to the table's folder or to a folder next to it (see `table_files`); the suffix may be missing,
    as in Kaggle's tables. Numeric labels are sorted as numbers, other labels as strings.

    Args:
      path: the file.
      notices: receives a line about the columns used, and about skipped rows.
      image_key: name of the file column, or its index from 0 if there is no header; None: guessed.
      label_key: the label column, likewise.
      part_key: the column that says train, validation or test (see `part_of`), likewise; it may be absent.
      group_key: the column that says what an image belongs to, e.g. a patient; None: none is read.
      known: classes of a network to be evaluated; a single class is then enough.

    Raises:
      UserError: the table, its columns, files or labels are missing or invalid.
    """
    rows, places, keys = _rows(path), Places(path), (image_key, label_key, part_key, group_key)
    header = _header(rows, places, keys)
    body = rows[header is not None :]
    names = header or [str(number) for number in range(max(map(len, rows)))]
    columns = _columns(path, places, names, body, keys)
    labelled = [row for row in body if len(row) > max(columns.image, columns.label) and row[columns.label].strip()]
    if len(labelled) < len(body):
        notices.append(f"{counted(len(body) - len(labelled), 'row')} of {path} without a label skipped")
    if not labelled:
        raise UserError(f"{path} has no labels in column {names[columns.label]!r}; name another with data.label_key")
    files = Files(path, places, [row[columns.image].strip() for row in labelled])
    part = "" if columns.part is None else f", split from {names[columns.part]!r}"
    notices.append(
        f"{path}: files from column {names[columns.image]!r}, labels from {names[columns.label]!r}{part}; "
        f"files in {files.base}"
    )
    labels = [row[columns.label].strip() for row in labelled]
    _check_single(path, labels)
    parts = [None if columns.part is None else part_of(row[columns.part]) for row in labelled]
    groups = [_cell(row, columns.group) for row in labelled]
    distinct = _without_duplicates(path, list(files.labelled(labels, parts, groups)), notices)
    class_names = _class_names(path, distinct, names[columns.label], known)
    order = {name: number for number, name in enumerate(class_names)}
    return Listing(files.root, path, class_names, sorted(distinct, key=lambda file: order[file.class_name]))


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


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _header(rows: list[list[str]], places: Places, keys: tuple[str | None, ...]) -> list[str] | None:
    """Returns the column names; None if the first row is already an image."""
    first = [cell.strip() for cell in rows[0]]
    named = [key for key in keys if key is not None]
    if any(key in first for key in named):
        return first
    usual = set(" ".join(USUAL.values()).split())
    if any(_plain(cell) in usual for cell in first):
        return first
    return None if any(map(places.holds, first)) or len(rows) == 1 else first


def _columns(
    path: Path, places: Places, names: list[str], body: list[list[str]], keys: tuple[str | None, ...]
) -> Columns:
    """Chooses the columns: those of `keys` (image, label, part, group) if given, else guessed. Raises UserError."""
    for key in keys:
        if key is not None and key not in names:
            raise UserError(f"{path} has no column {key!r}; its columns are {', '.join(map(repr, names))}")
    image_key, label_key, part_key, group_key = keys
    taken = {key for key in keys if key is not None}

    def guess(what: str) -> str | None:
        free = {_plain(name): name for name in reversed(names) if name not in taken}
        return next((free[name] for name in USUAL[what].split() if name in free), None)

    # The split goes first: if only two columns remain, naming one of them is enough.
    part = part_key or _guessed_part(names, body, guess("part"))
    if part is not None:
        taken.add(part)
    image = image_key or guess("image") or _column_of_files(places, names, body, taken)
    if image is not None:
        taken.add(image)
    rest = [name for name in names if name not in taken and name and not name.startswith("Unnamed:")]
    label = label_key or guess("label") or (rest[0] if len(rest) == 1 else None)
    for key, column, what in (("image_key", image, "files"), ("label_key", label, "labels")):
        if column is None:
            raise UserError(
                f"{path}: cannot tell which column has the {what}; name it with --config.data.{key}=NAME "
                f"(columns: {', '.join(map(repr, names))})"
            )
    assert image is not None
    assert label is not None
    position = None if part is None else names.index(part)
    if position is not None:
        values = {row[position].strip() if position < len(row) else "" for row in body}
        unknown = sorted(value for value in values if part_of(value) is None)
        if unknown:
            raise UserError(
                f"{path}: column {part!r} must say train, validation or test, not {some(map(repr, unknown))}"
            )
    return Columns(
        names.index(image), names.index(label), position, None if group_key is None else names.index(group_key)
    )


def _guessed_part(names: list[str], body: list[list[str]], name: str | None) -> str | None:
    """Returns the column `name` if it contains split names; a column of cross-validation folds contains numbers."""
    if name is None:
        return None
    position = names.index(name)
    known = [position < len(row) and part_of(row[position]) is not None for row in body]
    return name if any(known) else None


def _column_of_files(places: Places, names: list[str], body: list[list[str]], taken: Collection[str]) -> str | None:
    first = zip(names, body[0] if body else (), strict=False)
    return next((name for name, cell in first if name not in taken and places.holds(cell.strip())), None)


def _check_single(path: Path, labels: Sequence[str]) -> None:
    """Raises UserError if images have several labels each."""
    distinct = set(labels)
    pieces = collections.Counter(piece for label in distinct for piece in set(re.split(r"[|;]", label)))
    for label in sorted(distinct):
        several = [
            parts
            for separator in SEPARATORS
            if len(parts := [piece.strip() for piece in label.split(separator)]) > 1
            and all(piece in distinct or (separator in "|;" and pieces[piece] > 1) for piece in parts)
        ]
        if several:
            raise UserError(
                f"{path}: {label!r} looks like several labels; multi-label classification is not supported, give each "
                f"image one label"
            )


def _without_duplicates(path: Path, files: list[LabelledFile], notices: list[str]) -> list[LabelledFile]:
    """Returns each file once. Raises UserError if a file has several labels, splits or groups."""
    first: dict[str, LabelledFile] = {}
    for file in files:
        other = first.setdefault(file.name, file)
        if other != file:
            what = [repr(value) for value in (other.class_name, file.class_name)]
            if other.class_name == file.class_name:
                same = other.part == file.part
                what = [str(other.group), str(file.group)] if same else [str(other.part), str(file.part)]
            raise UserError(f"{path} lists {file.name} twice, as {what[0]} and as {what[1]}; keep one of them")
    if len(first) < len(files):
        notices.append(f"{counted(len(files) - len(first), 'duplicate row')} of {path} skipped")
    return list(first.values())


def _class_names(path: Path, files: list[LabelledFile], column: str, known: Collection[str] | None) -> tuple[str, ...]:
    names = {file.class_name for file in files}
    if known is None:
        trained = {file.class_name for file in files if file.part in (None, "train")}
        unknown = sorted(names - trained)
        if trained and unknown:
            raise UserError(f"{path} has labels that are not in the training split: {some(map(repr, unknown))}")
        if len(names) < 2:
            raise UserError(
                f"{path} needs images of at least two classes; column {column!r} has only {some(map(repr, names))}"
            )
        if len(names) > max(2, len(files) // 2) and all(map(_is_number, names)):
            raise UserError(
                f"{path}: column {column!r} has a different number for each image, not classes; name another column "
                f"with --config.data.label_key=NAME"
            )
    return tuple(sorted(names, key=float) if all(map(_is_number, names)) else sorted(names))


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(\.\d*)?", text) is not None
