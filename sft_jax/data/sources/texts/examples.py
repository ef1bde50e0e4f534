"""Lists the labelled texts of a file or folder."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from sft_jax.data.images.files import is_ignored
from sft_jax.data.sources.labelling import number_of
from sft_jax.data.sources.listing import Label, counted, some
from sft_jax.data.sources.part_names import PARTS, part_of
from sft_jax.data.sources.table_labels import in_label_order, is_number
from sft_jax.data.sources.texts.columns import Columns, Keys, columns_of, named
from sft_jax.data.sources.texts.sheet import READERS, Sheet, read_sheet, text_of
from sft_jax.data.texts.reading import Text
from sft_jax.errors import UserError

# Files whose names do not say their split.
KNOWN_PARTS = {"train_5500": "train", "trec_10": "test"}
# Files that may lie beside those of a set: vocabularies, tokenizers, descriptions.
ASIDE = (".txt", ".json")
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
    """

    name: str
    text: Text
    label: Label
    part: str | None


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


def list_texts(
    place: Path,
    notices: list[str],
    keys: Keys,
    known: Collection[str] | None = None,
    labelling: str = "class",
) -> Examples:
    """Lists the texts of a file, or of a folder: files named for splits, or a folder of text files for each class.

    Classes that are numbers are sorted as numbers, others as strings, unless a Parquet file declares its classes.

    Args:
      place: the file or folder.
      notices: receives a line about anything guessed or skipped.
      keys: names of columns.
      known: classes of a network to be evaluated; a single class is then enough.
      labelling: "class" or "number", see `labelling.LABELLINGS`.

    Raises:
      UserError: there are no texts, or their columns or labels are missing or invalid.
    """
    name, declared = "number", None
    if place.is_dir():
        files = _files(place)
        tables = [path for path in files if path.suffix.lower() in READERS]
        # Text files in a folder for each class look like tables of one cell.
        of_text = all(path.suffix.lower() == ".txt" or not path.suffix for path in files)
        if (of_text and any(path.parent != place for path in files)) or not tables:
            found = _of_folders(place, files, notices)
        else:
            found, name, declared = _of_sheets(place, tables, keys, labelling, notices)
    elif place.is_file():
        if place.suffix.lower() not in READERS:
            raise UserError(f"data.source=text:{place}: texts are read from {', '.join(READERS)} files, or a folder")
        found, name, declared = _of_sheets(place.parent, [place], keys, labelling, notices)
    else:
        raise UserError(f"data.source=text:{place}: no such file or folder")
    if not found:
        raise UserError(f"{place} has no labelled texts")
    if labelling == "number":
        numbered = [each._replace(label=number_of(str(each.label), f"the label of {each.name}")) for each in found]
        return Examples(place, (name,), numbered, labelling)
    return Examples(place, _class_names(place, found, known, declared, notices), found)


def _files(place: Path) -> list[Path]:
    """Returns the files in and below a folder, sorted; hidden ones and documents about the set are left out."""
    found = sorted(path for path in place.rglob("*") if path.is_file())
    shown = [path for path in found if not any(map(is_ignored, path.relative_to(place).parts))]
    return [path for path in shown if path.stem.casefold() not in ("readme", "license", "licence", "dataset_info")]


def _of_sheets(
    root: Path, paths: list[Path], keys: Keys, labelling: str, notices: list[str]
) -> tuple[list[Example], str, tuple[str, ...] | None]:
    """Returns the examples of files, the column with their labels, and the classes that they declare."""
    parts = {path: _part(path) for path in paths}
    others = [path for path, part in parts.items() if part is None and path.suffix.lower() in ASIDE]
    if len(others) < len(paths) and len(paths) > 1:
        paths = [path for path in paths if path not in others]
        if others:
            notices.append(f"{root}: skipped, because their names say no split: {some(path.name for path in others)}")
    unknown = [path.name for path in paths if parts[path] is None]
    if len(paths) > 1 and unknown:
        raise UserError(
            f"{root} has several files, and the names of {some(unknown)} do not say train, validation or test; "
            f"name one file: text:FILE"
        )
    found: list[Example] = []
    declared: set[tuple[str, ...] | None] = set()
    told: set[str] = set()
    for path in paths:
        sheet = read_sheet(path, notices)
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
        found += _of_sheet(root, sheet, columns, parts[path] if len(paths) > 1 else None, notices)
    return found, label, declared.pop() if len(declared) == 1 else None


def _part(path: Path) -> str | None:
    # Hugging Face's are like train-00000-of-00001.parquet.
    stem = path.stem.partition("-0")[0]
    return KNOWN_PARTS.get(stem.casefold()) or part_of(stem)


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
        found.append(Example(f"{name}:{line}", text, label, own))
    for count, what in ((unlabelled, "label"), (empty, "text")):
        if count:
            notices.append(f"{sheet.path}: {counted(count, 'row')} without a {what} skipped")
    return found


def _of_folders(place: Path, paths: list[Path], notices: list[str]) -> list[Example]:
    """Returns the examples of text files: [split/]class/file."""
    found, unlabelled, empty = [], [], 0
    encodings: list[str] = []
    for path in paths:
        *folders, _ = path.relative_to(place).parts
        part = part_of(folders[0]) if len(folders) > 1 else None
        folders = folders[1:] if part else folders
        if len(folders) != 1 or folders[0] in ("unsup",):  # IMDb's texts without a label
            unlabelled.append(path.relative_to(place).as_posix())
            continue
        text = text_of(path, encodings).strip()
        if not text:
            empty += 1
            continue
        found.append(Example(path.relative_to(place).as_posix(), (text,), folders[0], part))
    if encodings:
        notices.append(f"{place}: {counted(len(encodings), 'file')} not in UTF-8, read as Latin-1")
    if unlabelled:
        notices.append(
            f"{place}: {counted(len(unlabelled), 'file')} in no folder of a class skipped: {some(unlabelled)}"
        )
    if empty:
        notices.append(f"{place}: {counted(empty, 'empty file')} skipped")
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
