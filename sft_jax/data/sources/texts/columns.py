"""Chooses the columns of a sheet that hold texts, labels and splits."""

from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from sft_jax.data.sources.listing import some
from sft_jax.data.sources.part_names import part_of
from sft_jax.data.sources.table import SEVERAL, USUAL, plain
from sft_jax.data.sources.table_labels import is_number
from sft_jax.data.sources.texts.sheet import Sheet
from sft_jax.errors import UserError

# Common names of two columns that are one example, as in GLUE, SuperGLUE and SNLI; case, spaces and underscores are
# ignored.
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("text1", "text2"),
    ("texta", "textb"),
    ("query", "passage"),
)
# Common names of a column of texts, and further ones of labels, the most likely first.
TEXTS = (
    "text sentence review reviewtext content comment commenttext question body message tweet document headline title "
    "abstract description utterance query"
)
LABELS = USUAL["label"] + " sentiment intent topic emotion stars rating goldlabel"
NUMBERS = "score similarity similarityscore relatednessscore rating stars grade number value"


class Keys(NamedTuple):
    """Names of columns that the user gave; None for those to guess.

    Attributes:
      texts: of the texts, two separated by a semicolon for pairs.
      label: of the labels.
      part: of the splits, which there may be none of.
      group: of what texts belong to, e.g. an author, which is never guessed.
    """

    texts: str | None = None
    label: str | None = None
    part: str | None = None
    group: str | None = None

    @classmethod
    def of(cls, config: ConfigDict, texts: str | None) -> "Keys":
        """Returns the keys of `config`, the section `data`, and the columns `texts`."""
        return cls(texts, config.label_key, config.part_key)


class Columns(NamedTuple):
    """Indices of the columns that are read; `part` and `group` are None if there are no such columns."""

    texts: tuple[int, ...]
    label: int
    part: int | None
    group: int | None


def named(sheet: Sheet, keys: Keys) -> Sheet:
    """Returns the sheet with the names of its columns: those of its first row, if that is a header, or "0", "1", ..."""
    if sheet.names is not None:
        return sheet
    first = [(cell or "").strip() for cell in sheet.rows[0]]
    given = {name.strip() for key in keys if key is not None for name in key.split(SEVERAL)}
    usual = {*TEXTS.split(), *LABELS.split(), *USUAL["part"].split(), *(name for pair in PAIRS for name in pair)}
    is_header = bool(given & set(first)) or any(plain(cell) in usual for cell in first)
    if is_header:
        return sheet._replace(names=first, rows=sheet.rows[1:], lines=sheet.lines[1:])
    return sheet._replace(names=[str(number) for number in range(len(first))])


def columns_of(sheet: Sheet, keys: Keys, labelling: str = "class") -> Columns:
    """Chooses the columns: those of the keys if given, else a guess. Raises UserError if that is not possible.

    `labelling` is "class" or "number": what the column of labels has.
    """
    names = sheet.names
    assert names is not None
    text_keys = _named_texts(sheet, keys.texts)
    _check_names(sheet, [keys.label, keys.part, keys.group])
    taken = {key for key in (*text_keys, keys.label, keys.part, keys.group) if key is not None}
    part = keys.part or _part(sheet, taken)
    taken |= {part} if part else set()
    label = keys.label or _usual(names, f"{NUMBERS} {LABELS}" if labelling == "number" else LABELS, taken)
    texts = text_keys or _texts(sheet, taken | ({label} if label else set()))
    if label is None:
        # By their contents: cells of few kinds are classes.
        fits = _has_numbers if labelling == "number" else _is_class
        free = [name for name in names if name not in taken and name not in texts and fits(sheet, name)]
        label = free[0] if len(free) == 1 else None
    for key, what, found in (("text.columns", "texts", texts), ("data.label_key", "labels", label)):
        if not found:
            raise UserError(
                f"{sheet.path}: cannot tell which column has the {what}; name it with --config.{key}=NAME "
                f"(columns: {', '.join(map(repr, names))})"
            )
    assert label is not None
    position = None if part is None else names.index(part)
    if position is not None:
        unknown = sorted({cell for row in sheet.rows if part_of(cell := row[position] or "") is None})
        if unknown:
            raise UserError(
                f"{sheet.path}: column {part!r} must say train, validation or test, not {some(map(repr, unknown))}"
            )
    group = None if keys.group is None else names.index(keys.group)
    return Columns(tuple(names.index(name) for name in texts), names.index(label), position, group)


def text_columns(sheet: Sheet, text_key: str | None) -> tuple[int, ...]:
    """Chooses the columns with the texts of a sheet that needs no labels, as `columns_of` does."""
    names = sheet.names
    assert names is not None
    label = _usual(names, f"{LABELS} {NUMBERS}", set())
    texts = _named_texts(sheet, text_key) or _texts(sheet, {label} if label and len(names) > 1 else set())
    return tuple(names.index(name) for name in texts)


def _named_texts(sheet: Sheet, text_key: str | None) -> list[str]:
    assert sheet.names is not None
    keys = [] if text_key is None else [text_key] if text_key in sheet.names else text_key.split(SEVERAL)
    keys = [key.strip() for key in keys]
    _check_names(sheet, keys)
    if len(keys) > 2:
        raise UserError(f"config.text.columns={text_key}: at most two columns can be one example")
    return keys


def _check_names(sheet: Sheet, keys: Sequence[str | None]) -> None:
    assert sheet.names is not None
    for key in keys:
        if key is not None and key not in sheet.names:
            raise UserError(f"{sheet.path} has no column {key!r}; its columns are {', '.join(map(repr, sheet.names))}")


def _usual(names: Sequence[str], words: str, taken: set[str]) -> str | None:
    free = {plain(name): name for name in reversed(names) if name not in taken}
    return next((free[word] for word in words.split() if word in free), None)


def _texts(sheet: Sheet, taken: set[str]) -> list[str]:
    """Returns the columns that are called like texts, else the one with the most characters."""
    assert sheet.names is not None
    free = {plain(name): name for name in reversed(sheet.names) if name not in taken}
    pair = next(([free[name] for name in pair] for pair in PAIRS if set(pair) <= free.keys()), None)
    if pair is not None:
        return pair
    one = _usual(sheet.names, TEXTS, taken)
    longest = max(reversed(free.values()), key=lambda name: _length(sheet, name), default=None)
    return [name for name in [one or longest] if name is not None]


def _part(sheet: Sheet, taken: set[str]) -> str | None:
    """Returns a column that is named as one of splits and has some."""
    assert sheet.names is not None
    name = _usual(sheet.names, USUAL["part"], taken)
    if name is None:
        return None
    position = sheet.names.index(name)
    return name if any(part_of(row[position] or "") for row in sheet.rows) else None


def _cells(sheet: Sheet, name: str) -> list[str]:
    assert sheet.names is not None
    position = sheet.names.index(name)
    return [row[position] or "" for row in sheet.rows]


def _length(sheet: Sheet, name: str) -> int:
    return sum(map(len, _cells(sheet, name)))


def _has_numbers(sheet: Sheet, name: str) -> bool:
    """Returns whether a column has numbers alone, and some."""
    cells = [cell.strip() for cell in _cells(sheet, name) if cell.strip()]
    return bool(cells) and all(map(is_number, cells))


def _is_class(sheet: Sheet, name: str) -> bool:
    """Returns whether a column has few kinds of cells."""
    cells = _cells(sheet, name)
    return len(set(cells)) <= max(2, len(cells) // 5)
