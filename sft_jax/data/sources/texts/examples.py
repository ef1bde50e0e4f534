"""Labelled texts, and how the rows of sheets become such."""

import dataclasses
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from sft_jax.data.sources.labelling import number_of
from sft_jax.data.sources.listing import Label, counted, some
from sft_jax.data.sources.part_names import PARTS, part_of
from sft_jax.data.sources.table_labels import in_label_order, is_number
from sft_jax.data.sources.texts.columns import Columns, Keys, columns_of, named
from sft_jax.data.sources.texts.sheet import Sheet
from sft_jax.data.texts.reading import Text
from sft_jax.errors import UserError

# What stands for no label, where the classes are declared or all of a file's labels are this (GLUE's test sets), and in
# the columns of SNLI's and MultiNLI's that are so called.
HIDDEN, UNDECIDED = "-1", {"gold_label": "-"}


class Example(NamedTuple):
    """A labelled text.

    Attributes:
      name: its file and line, e.g. "dev.tsv:12", or its own file.
      text: the text, or a pair.
      label: its class, or its number.
      part: its split: "train", "val" or "test"; None if the source does not say.
      group: what it belongs to, e.g. an author; None if the source was not asked or does not say.
    """

    name: str
    text: Text
    label: Label
    part: str | None
    group: str | None = None


@dataclasses.dataclass(frozen=True)
class Examples:
    """The texts of a source.

    Attributes:
      place: the file or folder that the user named.
      class_names: in label order; the name of the number alone.
      all: the texts, in the order of the files.
      labelling: "class" or "number", see `labelling.LABELLINGS`.
    """

    place: Path
    class_names: tuple[str, ...]
    all: list[Example]
    labelling: str = "class"


class Found(NamedTuple):
    """Examples before their labels are checked.

    Attributes:
      examples: with labels as strings.
      label: the name of the column with the labels.
      declared: the classes that all files declare, in label order; None if they do not.
    """

    examples: list[Example]
    label: str = "number"
    declared: tuple[str, ...] | None = None


def examples_of(
    place: Path, found: Found, notices: list[str], *, known: Collection[str] | None, labelling: str
) -> Examples:
    """Returns the texts of `place` with their classes, or their numbers. See `list_texts`."""
    examples = found.examples
    if not examples:
        raise UserError(f"{place} has no labelled texts")
    if labelling == "number":
        numbered = [each._replace(label=number_of(str(each.label), f"the label of {each.name}")) for each in examples]
        return Examples(place, (found.label,), numbered, labelling)
    return Examples(place, _class_names(place, examples, known, found.declared, notices), examples)


def of_sheets(
    root: Path, sheets: Iterable[tuple[Sheet, str | None]], keys: Keys, labelling: str, notices: list[str]
) -> Found:
    """Returns the examples of sheets, each with its split, if that is known.

    Arguments and errors are those of `list_texts`; `root` is the folder that names are relative to.
    """
    found: list[Example] = []
    declared: set[tuple[str, ...] | None] = set()
    told: set[str] = set()
    label = ""
    for sheet, own in sheets:
        path = sheet.path
        if not sheet.rows:
            raise UserError(f"{path} is empty")
        sheet = named(sheet, keys)
        columns = columns_of(sheet, keys, labelling)
        assert sheet.names is not None
        label = sheet.names[columns.label]
        texts = " and ".join(repr(sheet.names[column]) for column in columns.texts)
        part = "" if columns.part is None else f", split from {sheet.names[columns.part]!r}"
        line = f"texts from column {texts}, labels from {label!r}{part}"
        if line not in told:
            notices.append(f"{path}: {line}")
        told.add(line)
        declared.add(classes := sheet.classes.get(label))
        if classes is not None and labelling == "number":
            raise UserError(
                f"{path}: column {label!r} has the classes {some(map(repr, classes))}, no numbers; name another column "
                f"with --config.data.label_key=NAME, or use --config.task=text"
            )
        found += _of_sheet(root, sheet, columns, own, notices)
    return Found(found, label, declared.pop() if len(declared) == 1 else None)


def _of_sheet(root: Path, sheet: Sheet, columns: Columns, part: str | None, notices: list[str]) -> list[Example]:
    assert sheet.names is not None
    labels = sheet.names[columns.label]
    classes = sheet.classes.get(labels)
    cells = [(row[columns.label] or "").strip() for row in sheet.rows]
    hidden = {HIDDEN} if classes is not None or set(cells) == {HIDDEN} else {UNDECIDED.get(labels)}
    name = sheet.path.relative_to(root).as_posix()
    found, unlabelled, empty = [], 0, 0
    for line, row, label in zip(sheet.lines, sheet.rows, cells, strict=True):
        text = tuple((row[column] or "").strip() for column in columns.texts)
        if not label or label in hidden:
            unlabelled += 1
            continue
        if not any(text):
            empty += 1
            continue
        if classes is not None:
            if not label.isdecimal() or int(label) >= len(classes):
                raise UserError(f"{sheet.path}: row {line} has the label {label}, but there are {len(classes)} classes")
            label = classes[int(label)]
        own = part if columns.part is None else part_of(row[columns.part] or "")
        group = None if columns.group is None else (row[columns.group] or "").strip() or None
        found.append(Example(f"{name}:{line}", text, label, own, group))
    for count, what in ((unlabelled, "label"), (empty, "text")):
        if count:
            notices.append(f"{sheet.path}: {counted(count, 'row')} without a {what} skipped")
    return found


def _class_names(
    place: Path,
    found: list[Example],
    known: Collection[str] | None,
    declared: tuple[str, ...] | None,
    notices: list[str],
) -> tuple[str, ...]:
    names = {str(example.label) for example in found}
    if known is None:
        trained = {str(example.label) for example in found if example.part in (None, "train")}
        unknown = sorted(names - trained)
        if trained and unknown:
            raise UserError(f"{place} has labels that are not in the training split: {some(map(repr, unknown))}")
        if len(names) < 2:
            raise UserError(f"{place} needs texts of at least two classes; it has only {some(map(repr, names))}")
        if len(names) > max(2, len(found) // 2):
            also = ", or predict the number with --config.task=text_regression" if all(map(is_number, names)) else ""
            raise UserError(
                f"{place} has {len(names):,} labels for {len(found):,} texts, which are no classes; name another "
                f"column with --config.data.label_key=NAME{also}"
            )
        if declared is not None:
            lacking = [name for name in declared if name not in names]
            if lacking:
                notices.append(f"{place}: classes without training texts: {some(map(repr, lacking))}")
            return declared
    return in_label_order(names)


def doubtful(parts: dict[str, list[Example]]) -> list[str]:
    """Returns notices about texts that are in several splits, or that have several labels in training."""
    lines = []
    labels: dict[Text, set[Label]] = {}
    for example in parts["train"]:
        labels.setdefault(example.text, set()).add(example.label)
    several = [text for text, own in labels.items() if len(own) > 1]
    if several:
        lines.append(
            f"{counted(len(several), 'training text')} with several labels: {some(repr(text[0]) for text in several)}"
        )
    for part in PARTS[1:]:
        again = [example.text for example in parts[part] if example.text in labels]
        if again:
            lines.append(
                f"{counted(len(again), f'{part} text')} of {len(parts[part]):,} also among the training texts: "
                f"{some(repr(text[0]) for text in again)}"
            )
    return lines
