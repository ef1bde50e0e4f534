"""Your own images: a table, as a CSV file, with a row for each image, its label and perhaps its part."""

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
# Rows that tell how a table is written.
SAMPLE = 50
# Usual names of columns, the likeliest first; capitals, spaces and underscores aside.
USUAL = {
    "image": "file filename filepath path image imagepath imagename imagefile imageid img imgpath imgname imgid "
    "picture photo idcode fname uri id name",
    "label": "label labels labelname class classname classid category categoryname target species breed diagnosis dx "
    "disease variety tag level y",
    "part": "split part partition set subset usage datasplit fold",
}
# Between the labels of an image that has several; of the last two only where each is a label of other images.
SEPARATORS = "|;, "


class Columns(NamedTuple):
    """Positions of the columns that are read; `part` is None where there is none."""

    image: int
    label: int
    part: int | None


def list_table(
    path: Path,
    notices: list[str],
    *,
    image_key: str | None = None,
    label_key: str | None = None,
    part_key: str | None = None,
    known: Collection[str] | None = None,
) -> Listing:
    """Reads a CSV file: separated by commas, semicolons, tabs or bars, with a header or none.

    Paths are relative to the table's folder, or to a folder beside it (see `table_files`); a suffix may be missing, as
    in Kaggle's tables. Numbers for labels are in the order of numbers, other labels in that of their characters.

    Args:
      path: the file.
      notices: gets a line about which columns were read, and about rows that were left out.
      image_key: name of the column of files, or without a header its number, from 0; None: guessed.
      label_key: of the column of labels, likewise.
      part_key: of the column that says train, validation or test (see `part_of`), likewise; there need not be one.
      known: the classes of a network that is to be scored: then a single class will do.

    Raises:
      UserError: no such table, columns, files or labels.
    """
    rows, places = _rows(path), Places(path)
    header = _header(rows, places, (image_key, label_key, part_key))
    body = rows[header is not None :]
    names = header or [str(number) for number in range(max(map(len, rows)))]
    columns = _columns(path, places, names, body, (image_key, label_key, part_key))
    labelled = [row for row in body if len(row) > max(columns.image, columns.label) and row[columns.label].strip()]
    if len(labelled) < len(body):
        notices.append(f"{counted(len(body) - len(labelled), 'row')} of {path} without a label were left out")
    if not labelled:
        raise UserError(f"{path} has no row with a label in the column {names[columns.label]!r}")
    files = Files(path, places, [row[columns.image].strip() for row in labelled])
    part = "" if columns.part is None else f", {names[columns.part]!r} the part"
    notices.append(
        f"{path}: the column {names[columns.image]!r} is the file, {names[columns.label]!r} the label{part}; "
        f"files in {files.base}"
    )
    labels = [row[columns.label].strip() for row in labelled]
    _check_single(path, labels)
    parts = [None if columns.part is None else part_of(row[columns.part]) for row in labelled]
    found = _without_repeats(path, list(files.labelled(labels, parts)), notices)
    class_names = _class_names(path, found, names[columns.label], known)
    order = {name: number for number, name in enumerate(class_names)}
    return Listing(files.root, path, class_names, sorted(found, key=lambda file: order[file.class_name]))


def _rows(path: Path) -> list[list[str]]:
    if path.is_dir():
        raise UserError(f"data.source=csv:{path}: that is a folder; name a table in it, or use folder:{path}")
    if not path.is_file():
        raise UserError(f"data.source=csv:{path}: there is no such file")
    try:
        content = path.read_bytes()
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        if "\0" in text:
            raise ValueError("zeros in it")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path} is no text in UTF-8; save it as CSV in UTF-8") from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path} is empty")

    def split(delimiter: str, lines: Sequence[str]) -> list[list[str]]:
        try:
            return list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
        except csv.Error as error:
            raise UserError(f"{path} is no CSV file: {error}") from None

    def evidence(delimiter: str) -> tuple[int, int]:
        """Rows that have as many columns as the first, and that number."""
        rows = split(delimiter, lines[:SAMPLE])
        same = sum(len(row) == len(rows[0]) for row in rows) if len(rows[0]) > 1 else 0
        return same, len(rows[0])

    return split(max(DELIMITERS, key=evidence), lines)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _header(rows: list[list[str]], places: Places, keys: tuple[str | None, ...]) -> list[str] | None:
    """The names of the columns; None where the first row has an image already."""
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
    """Which columns are read: those of `keys` (image, label, part), the others guessed. Raises UserError."""
    for key in keys:
        if key is not None and key not in names:
            raise UserError(f"{path} has no column {key!r}; it has {', '.join(map(repr, names))}")
    image_key, label_key, part_key = keys
    taken = {key for key in keys if key is not None}

    def guess(what: str) -> str | None:
        free = {_plain(name): name for name in reversed(names) if name not in taken}
        return next((free[name] for name in USUAL[what].split() if name in free), None)

    # Where only two columns are left one need not be named.
    part = part_key or _guessed_part(names, body, guess("part"))
    if part is not None:
        taken.add(part)
    image = image_key or guess("image") or _column_of_files(places, names, body, taken)
    if image is not None:
        taken.add(image)
    rest = [name for name in names if name not in taken and name and not name.startswith("Unnamed:")]
    label = label_key or guess("label") or (rest[0] if len(rest) == 1 else None)
    for key, found, what in (("image_key", image, "files"), ("label_key", label, "labels")):
        if found is None:
            raise UserError(
                f"{path}: which of its columns has the {what}? Say it with --config.data.{key}=NAME; it has "
                f"{', '.join(map(repr, names))}"
            )
    assert image is not None
    assert label is not None
    position = None if part is None else names.index(part)
    if position is not None:
        values = {row[position].strip() if position < len(row) else "" for row in body}
        unknown = sorted(value for value in values if part_of(value) is None)
        if unknown:
            raise UserError(
                f"{path}: the column {part!r} says other than train, validation or test: {some(map(repr, unknown))}"
            )
    return Columns(names.index(image), names.index(label), position)


def _guessed_part(names: list[str], body: list[list[str]], name: str | None) -> str | None:
    """The column `name`, if what it says are parts: that of the folds of a cross-validation has numbers."""
    if name is None:
        return None
    position = names.index(name)
    known = [position < len(row) and part_of(row[position]) is not None for row in body]
    return name if any(known) else None


def _column_of_files(places: Places, names: list[str], body: list[list[str]], taken: Collection[str]) -> str | None:
    first = zip(names, body[0] if body else (), strict=False)
    return next((name for name, cell in first if name not in taken and places.holds(cell.strip())), None)


def _check_single(path: Path, labels: Sequence[str]) -> None:
    """Raises UserError where images have several labels each."""
    distinct = set(labels)
    pieces = collections.Counter(piece for label in distinct for piece in set(re.split(r"[|;]", label)))
    for label in sorted(distinct):
        several = [
            found
            for separator in SEPARATORS
            if len(found := [piece.strip() for piece in label.split(separator)]) > 1
            and all(piece in distinct or (separator in "|;" and pieces[piece] > 1) for piece in found)
        ]
        if several:
            raise UserError(
                f"{path}: {label!r} is several labels of one image; only one an image can be learnt here, make it one"
            )


def _without_repeats(path: Path, files: list[LabelledFile], notices: list[str]) -> list[LabelledFile]:
    """Each file once. Raises UserError where it has several labels or parts."""
    first: dict[str, LabelledFile] = {}
    for file in files:
        other = first.setdefault(file.name, file)
        if other != file:
            what = [repr(value) for value in (other.class_name, file.class_name)]
            if other.class_name == file.class_name:
                what = [str(other.part), str(file.part)]
            raise UserError(f"{path} has {file.name} twice, as {what[0]} and as {what[1]}; leave one of them")
    if len(first) < len(files):
        notices.append(f"{counted(len(files) - len(first), 'row')} of {path} that say the same again were left out")
    return list(first.values())


def _class_names(path: Path, files: list[LabelledFile], column: str, known: Collection[str] | None) -> tuple[str, ...]:
    names = {file.class_name for file in files}
    if known is None:
        trained = {file.class_name for file in files if file.part in (None, "train")}
        unknown = sorted(names - trained)
        if trained and unknown:
            raise UserError(f"{path} has labels that are none of those of training: {some(map(repr, unknown))}")
        if len(names) < 2:
            raise UserError(
                f"{path} needs images of at least two classes; the column {column!r} has {some(map(repr, names))}"
            )
        if len(names) > max(2, len(files) // 2) and all(map(_is_number, names)):
            raise UserError(
                f"{path}: the column {column!r} has a number for each image, and no classes; name another one"
            )
    return tuple(sorted(names, key=float) if all(map(_is_number, names)) else sorted(names))


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(\.\d*)?", text) is not None
