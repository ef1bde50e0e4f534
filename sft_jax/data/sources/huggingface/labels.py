"""Chooses the columns of a table that label its images, and turns their cells into labels."""

import math
from collections.abc import Collection, Sequence
from typing import Any

from sft_jax.data.sources import table_labels
from sft_jax.data.sources.huggingface.table import CLASS, CLASSES, NUMBER, TEXT, TEXTS, WHOLE, Table
from sft_jax.data.sources.labelling import number_of
from sft_jax.data.sources.listing import Label, LabelledFile, some
from sft_jax.data.sources.table import ALL, SEVERAL, USUAL, plain
from sft_jax.errors import UserError

# Kinds of columns that can give each kind of labels, the surest first.
KINDS = {
    "class": (CLASS, TEXT, WHOLE, NUMBER),
    "classes": (CLASSES, TEXTS, CLASS, TEXT, WHOLE),
    "number": (NUMBER, WHOLE, TEXT, CLASS),
}


def label_columns(table: Table, labelling: str, label_key: str | None) -> list[str]:
    """Returns the columns with the labels: those that `label_key` names, else a guess.

    Raises:
      UserError: there are no such columns, they cannot give such labels, or it is not clear which is meant.
    """
    able = [name for name, feature in table.features.items() if feature.kind in KINDS[labelling]]
    if label_key is not None:
        several = labelling == "classes" and label_key not in table.features
        keys = [key.strip() for key in label_key.split(SEVERAL) if key.strip()] if several else [label_key]
        keys = able if several and keys == [ALL] else keys
        unknown = [key for key in keys if key not in table.features]
        if unknown:
            raise UserError(f"{table.place} has no column {unknown[0]!r}{_columns(table)}")
        for key in keys:
            _check_kind(table, labelling, key)
        return keys
    sure = [name for name in able if table.features[name].kind == KINDS[labelling][0]]
    if len(sure) == 1:
        return sure
    by_name = {plain(name): name for name in reversed(able)}
    words = (USUAL["number"] if labelling == "number" else "") + " " + USUAL["label"]
    usual = next((by_name[word] for word in words.split() if word in by_name), None)
    if usual is not None:
        return [usual]
    if len(able) == 1:
        return able
    for key in ("label", "labels"):
        if key in table.features:
            _check_kind(table, labelling, key)
    raise UserError(
        f"{table.place}: cannot tell which column has the labels; name it with --config.data.label_key=NAME"
        f"{_columns(table)}"
    )


def _columns(table: Table) -> str:
    return f" (columns: {', '.join(map(repr, table.features)) or 'none but the images'})"


def _check_kind(table: Table, labelling: str, column: str) -> None:
    kind = table.features[column].kind
    if kind in KINDS[labelling]:
        return
    if labelling == "class" and kind in (CLASSES, TEXTS):
        raise UserError(
            f"{table.place}: column {column!r} has several labels per image; use --config.task=multilabel, or name "
            f"another with --config.data.label_key=NAME"
        )
    raise UserError(
        f"{table.place}: column {column!r} is {_described(kind)}, which gives no labels for this task; name another "
        f"with --config.data.label_key=NAME{_columns(table)}"
    )


def _described(kind: str | None) -> str:
    return f"a column of the kind {kind!r}" if kind else "a nested object, or of mixed types"


def read_labels(table: Table, labelling: str, columns: Sequence[str], notices: list[str]) -> list[Label | None]:
    """Returns the label of each row, None where a row has none.

    Raises:
      UserError: the cells are not what `labelling` needs.
    """
    cells = [_named(table, column) for column in columns]
    if len(columns) > 1:
        rows = [["" if cell is None else str(cell) for cell in row] for row in zip(*cells, strict=True)]
        return list(table_labels.read_labels(table.place, labelling, columns, rows, notices))
    (column,), (only,) = columns, cells
    if labelling == "number":
        what = f"{table.place}: a cell of column {column!r}"
        return [None if cell is None else number_of(str(cell), what) for cell in only]
    if labelling == "class":
        labels = [None if cell is None else str(cell) for cell in only]
        if table.features[column].kind == TEXT:
            table_labels.check_single(table.place, [label for label in labels if label is not None])
        return list(labels)
    if table.features[column].kind in (CLASSES, TEXTS):
        return [None if cell is None else tuple(sorted(set(map(str, cell)))) for cell in only]
    texts = [["" if cell is None else str(cell)] for cell in only]
    return list(table_labels.read_labels(table.place, labelling, [column], texts, notices))


def _named(table: Table, column: str) -> list[Any]:
    """Returns a column with the names of classes for their indices, and None for cells that are empty."""
    feature = table.features[column]
    values = [None if value is None or value == "" or _is_nan(value) else value for value in table.values(column)]
    if feature.kind not in (CLASS, CLASSES):
        return values

    def name(index: int | None) -> str | None:
        # -1 stands for "no label" in hidden test splits.
        if index is None or index == -1:
            return None
        if not 0 <= index < len(feature.names):
            raise UserError(f"{table.place}: column {column!r} has {index}, but {len(feature.names)} classes")
        return feature.names[index]

    if feature.kind == CLASS:
        return list(map(name, values))
    return [None if value is None else [found for found in map(name, value) if found is not None] for value in values]


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def class_names(
    table: Table,
    labelling: str,
    columns: Sequence[str],
    files: list[LabelledFile],
    known: Collection[str] | None,
    notices: list[str],
) -> tuple[str, ...]:
    """Returns the names of the network's outputs: in the order of the set, if it declares them.

    Arguments and errors are those of `table_labels.class_names`; `notices` receives a line about classes without
    images.
    """
    declared = table.features[columns[0]].names
    if labelling == "number" or len(columns) > 1 or not declared:
        return table_labels.class_names(table.place, labelling, files, columns, known)
    # Checks the labels; here classes may have images in the other splits only, because the set knows them.
    training = [file for file in files if file.part in (None, "train")] if known is None else files
    present = set(table_labels.class_names(table.place, labelling, training or files, columns, known))
    lacking = [name for name in declared if name not in present]
    if known is not None:
        return tuple(name for name in declared if name in present)
    if lacking:
        notices.append(f"{table.place}: classes without training images: {some(map(repr, lacking))}")
    return declared
