"""Reads files of texts into rows of strings: CSV, TSV, JSON, JSON Lines, Parquet, and TREC's questions."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sft_jax.data.sources.table import DELIMITERS
from sft_jax.errors import UserError

# Rows from which the delimiter is guessed.
SAMPLE = 200


class Sheet(NamedTuple):
    """A file's rows.

    Attributes:
      path: the file.
      names: of its columns; None if it has no header, or none that is told from a row.
      rows: cells of each row, as many as the file's columns; None for a missing one.
      lines: where each row is in the file, counted from 1.
      classes: names of classes by column, where the file declares them.
    """

    path: Path
    names: list[str] | None
    rows: list[list[str | None]]
    lines: list[int]
    classes: dict[str, tuple[str, ...]] = {}  # noqa: RUF012  # never changed


def read_sheet(path: Path, notices: list[str]) -> Sheet:
    """Reads a file; `notices` receives a line about anything guessed. Raises UserError if it cannot be read."""
    return READERS[path.suffix.lower()](path, notices)


def text_of(path: Path, notices: list[str]) -> str:
    """Reads a text file in UTF-8, UTF-16 with its mark, or else Latin-1. Raises UserError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except ValueError:
        text = content.decode("latin-1")
        notices.append(f"{path} is not UTF-8: read as Latin-1")
    if "\0" in text:
        raise UserError(f"{path} is no text file: it has null characters")
    return text


def _delimited(path: Path, notices: list[str]) -> Sheet:
    text = text_of(path, notices)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(text)
    quoted = _rows(text, delimiter, quoting=csv.QUOTE_MINIMAL)
    plain = _rows(text, delimiter, quoting=csv.QUOTE_NONE)
    # Quotes either enclose cells, or are a part of the texts, as in GLUE's files.
    fitting = [rows for rows in (quoted, plain) if rows and len({len(row) for _, row in rows}) == 1]
    if not fitting:
        raise _ragged(path, quoted or plain or [], delimiter)
    rows = fitting[0]
    if rows is plain and '"' in text:
        notices.append(f"{path}: quotes do not enclose its cells, and are read as a part of the texts")
    return Sheet(path, None, [list(row) for _, row in rows], [line for line, _ in rows])


def _delimiter(text: str) -> str:
    """Returns the delimiter that gives the most rows with as many cells as the first, and then the most cells."""

    def evidence(delimiter: str) -> tuple[int, int]:
        sample = io.StringIO(text)
        rows = [row for row, _ in zip(csv.reader(sample, delimiter=delimiter), range(SAMPLE), strict=False) if row]
        same = sum(len(row) == len(rows[0]) for row in rows) if rows and len(rows[0]) > 1 else 0
        return same, len(rows[0]) if rows else 0

    try:
        return max(DELIMITERS, key=evidence)
    except csv.Error:
        return ","


def _rows(text: str, delimiter: str, quoting: Any) -> list[tuple[int, list[str]]] | None:
    """Returns the lines and cells of all rows that are not empty; None if they are not written this way."""
    reader, rows, line = csv.reader(io.StringIO(text), delimiter=delimiter, quoting=quoting, strict=True), [], 1
    limit = csv.field_size_limit(2**31 - 1)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((line, row))
            line = reader.line_num + 1
    except csv.Error:
        return None
    finally:
        csv.field_size_limit(limit)
    return rows


def _ragged(path: Path, rows: list[tuple[int, list[str]]], delimiter: str) -> UserError:
    if not rows:
        return UserError(f"{path} is empty")
    first = len(rows[0][1])
    line, row = next(((line, row) for line, row in rows if len(row) != first), rows[0])
    named = "tabs" if delimiter == "\t" else repr(delimiter)
    return UserError(
        f"{path}: line {line} has {len(row)} cells, separated by {named}, but the first row {first}; enclose texts in "
        f"double quotes"
    )


def _json_lines(path: Path, notices: list[str]) -> Sheet:
    text = text_of(path, notices)
    objects, lines = [], []
    # Not splitlines: texts may contain other ends of lines.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            objects.append(_parsed(path, line, f"line {number}"))
            lines.append(number)
    return _of_objects(path, objects, lines)


def _json(path: Path, notices: list[str]) -> Sheet:
    text = text_of(path, notices)
    if not text.lstrip().startswith("["):  # JSON Lines by another name, or one object
        return _json_lines(path, [])
    found = _parsed(path, text, "it")
    return _of_objects(path, found, list(range(1, len(found) + 1)))


def _parsed(path: Path, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: {where} is not JSON: {error}") from None


def _of_objects(path: Path, objects: list[Any], lines: list[int]) -> Sheet:
    for line, found in zip(lines, objects, strict=True):
        if not isinstance(found, dict):
            raise UserError(f"{path}: line {line} is not a JSON object with a text and a label")
    names = list(dict.fromkeys(name for found in objects for name in found))
    rows = [[_cell(found.get(name)) for name in names] for found in objects]
    return Sheet(path, names, rows, lines)


def _cell(value: Any) -> str | None:
    if value is None or value != value:  # NaN
        return None
    return value if isinstance(value, str) else json.dumps(value)


def _parquet(path: Path, notices: list[str]) -> Sheet:
    # Imported late, because it takes half a second.
    import pyarrow
    import pyarrow.parquet

    from sft_jax.data.sources.huggingface.parquet import declared_in

    try:
        table = pyarrow.parquet.read_table(path, page_checksum_verification=True)
    except (OSError, pyarrow.ArrowException) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(f"{path} cannot be read as Parquet: {reason}") from None
    names = table.column_names
    columns = [[_cell(_plain(value)) for value in column.to_pylist()] for column in table.columns]
    rows = [list(row) for row in zip(*columns, strict=True)]
    classes = {
        name: tuple(feature["names"])
        for name, feature in declared_in(table.schema).items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    }
    return Sheet(path, names, rows, list(range(1, len(rows) + 1)), classes)


def _plain(value: Any) -> Any:
    return None if isinstance(value, bytes) else value


def _trec(path: Path, notices: list[str]) -> Sheet:
    rows: list[list[str | None]] = []
    lines = []
    for number, line in enumerate(text_of(path, notices).split("\n"), start=1):
        if not line.strip():
            continue
        label, _, question = line.strip().partition(" ")
        coarse, colon, _ = label.partition(":")
        if not colon or not question:
            raise UserError(f"{path}: line {number} is not of the form COARSE:fine question, as TREC's files are")
        rows.append([question.strip(), coarse, label])
        lines.append(number)
    return Sheet(path, ["text", "label", "fine_label"], rows, lines)


READERS: dict[str, Callable[[Path, list[str]], Sheet]] = {
    ".csv": _delimited,
    ".tsv": _delimited,
    ".txt": _delimited,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
    ".label": _trec,
}
