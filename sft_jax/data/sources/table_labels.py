"""The labels of a table's rows: one class, several labels in a cell or in columns of 0 and 1, or a number."""

import collections
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from sft_jax.data.sources.labelling import LABELLINGS, number_of
from sft_jax.data.sources.listing import Label, LabelledFile, counted, some
from sft_jax.errors import UserError

# Separators of multiple labels; comma and space count only if every piece is itself a label of other images.
SEPARATORS = "|;, "
# What a column of one label may say.
YES, NO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}


def read_labels(
    path: Path, labelling: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notices: list[str]
) -> list[Label]:
    """Returns the labels of rows.

    Args:
      path: the table, for messages.
      labelling: a key of `LABELLINGS`.
      columns: names of the columns with the labels.
      rows: their cells.
      notices: receives a line about how several labels are written.

    Raises:
      UserError: the cells are not what `labelling` needs.
    """
    first = [row[0].strip() for row in rows]
    if labelling == "class":
        check_single(path, first)
        return list(first)
    if labelling == "number":
        return [number_of(cell, f"{path}: a cell of column {columns[0]!r}") for cell in first]
    if len(columns) > 1:
        return [_marked(path, columns, row) for row in rows]
    return _separated(path, columns[0], first, notices)


def is_marked(cells: Collection[str]) -> bool:
    """Returns whether a column's cells are all 0 or 1, and so could mark the images that have one label."""
    return {cell.strip().lower() for cell in cells} <= YES | NO


def _marked(path: Path, columns: Sequence[str], row: Sequence[str]) -> Label:
    chosen = []
    for name, cell in zip(columns, row, strict=True):
        value = cell.strip().lower()
        if value not in YES | NO:
            raise UserError(f"{path}: column {name!r} has {cell!r}; a column of one label must be 0 or 1 in every row")
        if value in YES:
            chosen.append(name)
    return tuple(sorted(chosen))


def _separated(path: Path, column: str, cells: Sequence[str], notices: list[str]) -> list[Label]:
    separator = _separator(cells)
    if separator is None:
        how = "no separator found, so that each image has one label"
    else:
        how = f"several of them separated by {'spaces' if separator == ' ' else repr(separator)}"
    empty = sum(not cell for cell in cells)
    without = f"; none in the empty cells of {counted(empty)}" if empty else ""
    notices.append(f"{path}: labels in column {column!r}, {how}{without}")
    return [tuple(sorted(set(_pieces(cell, separator)))) for cell in cells]


def _separator(cells: Sequence[str]) -> str | None:
    """Guesses the separator: the most frequent of ; and |, else a comma, else a space if labels recur among cells."""
    counts = {mark: sum(mark in cell for cell in cells) for mark in ";|"}
    likely = max(counts, key=lambda mark: counts[mark])
    if counts[likely]:
        return likely
    if any("," in cell for cell in cells):
        return ","
    distinct = {cell for cell in cells if cell}
    pieces = {piece for cell in distinct for piece in cell.split()}
    # Names of two words have more words than names; labels of which some images have several are fewer than the cells.
    return " " if any(" " in cell for cell in distinct) and len(pieces) < len(distinct) else None


def _pieces(cell: str, separator: str | None) -> list[str]:
    parts = [cell] if separator is None else cell.split(separator)
    return [part.strip() for part in parts if part.strip()]


def check_single(path: Path, labels: Sequence[str]) -> None:
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
                f"{path}: {label!r} looks like several labels; use --config.task=multilabel, or give each image one "
                f"label"
            )


def without_duplicates(path: Path, files: list[LabelledFile], notices: list[str]) -> list[LabelledFile]:
    """Returns each file once. Raises UserError if a file has several labels, splits or groups."""
    first: dict[str, LabelledFile] = {}
    for file in files:
        other = first.setdefault(file.name, file)
        if other != file:
            what = [repr(value) for value in (other.label, file.label)]
            if other.label == file.label:
                same = other.part == file.part
                what = [str(other.group), str(file.group)] if same else [str(other.part), str(file.part)]
            raise UserError(f"{path} lists {file.name} twice, as {what[0]} and as {what[1]}; keep one of them")
    if len(first) < len(files):
        notices.append(f"{counted(len(files) - len(first), 'duplicate row')} of {path} skipped")
    return list(first.values())


def in_order(files: Sequence[LabelledFile], labelling: str, names: Sequence[str]) -> list[LabelledFile]:
    """Returns the files in the order in which a run's record lists them: of classes, in that of their `names`."""
    if labelling == "class":
        place: dict[Label, int] = {name: number for number, name in enumerate(names)}
        return sorted(files, key=lambda file: place[file.label])
    return sorted(files, key=lambda file: (file.label, file.name))


def class_names(
    path: Path, labelling: str, files: list[LabelledFile], columns: Sequence[str], known: Collection[str] | None
) -> tuple[str, ...]:
    """Returns the names of the network's outputs: the classes in label order, or the column of the number.

    Args:
      path: the table, for messages.
      labelling: see `read_labels`.
      files: all of them.
      columns: see `read_labels`.
      known: classes of a network to be evaluated; there may then be fewer.

    Raises:
      UserError: there are too few classes, or some that are not in the training split.
    """
    if labelling == "number":
        return (columns[0],)
    classes_of = LABELLINGS[labelling].classes_of
    names = {name for file in files for name in classes_of(file.label)}
    if known is None:
        trained = {name for file in files if file.part in (None, "train") for name in classes_of(file.label)}
        unknown = sorted(names - trained)
        if trained and unknown:
            raise UserError(f"{path} has labels that are not in the training split: {some(map(repr, unknown))}")
        if labelling == "class":
            _check_classes(path, files, columns[0], names)
        elif not names:
            raise UserError(f"{path}: no image has a label in {some(map(repr, columns))}")
    if len(columns) > 1:
        return tuple(columns)
    return in_label_order(names)


def in_label_order(names: Collection[str]) -> tuple[str, ...]:
    """Sorts the names of classes: as numbers if all are, otherwise as strings."""
    return tuple(sorted(names, key=float) if all(map(is_number, names)) else sorted(names))


def _check_classes(path: Path, files: list[LabelledFile], column: str, names: Collection[str]) -> None:
    if len(names) < 2:
        raise UserError(
            f"{path} needs images of at least two classes; column {column!r} has only {some(map(repr, names))}"
        )
    if len(names) > max(2, len(files) // 2) and all(map(is_number, names)):
        raise UserError(
            f"{path}: column {column!r} has a different number for each image, not classes; name another column "
            f"with --config.data.label_key=NAME, or predict the number with --config.task=regression"
        )


def is_number(text: str) -> bool:
    """Returns whether a label is a number, written without an exponent."""
    return re.fullmatch(r"[+-]?\d+(\.\d*)?", text) is not None
