"""Folders of images with metadata.csv, metadata.jsonl or metadata.parquet, as the builder `imagefolder` reads them."""

import csv
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from sft_jax.data.images.files import is_ignored
from sft_jax.data.sources.huggingface.splits import split_folders
from sft_jax.data.sources.huggingface.table import NUMBER, TEXT, TEXTS, WHOLE, Feature, Table
from sft_jax.data.sources.listing import counted, some
from sft_jax.errors import UserError

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE = "file_name"

Row = dict[str, Any]


def metadata_files(root: Path) -> list[Path]:
    """Returns the metadata files in and below a folder, sorted. Raises OSError."""
    return sorted(
        Path(folder, name)
        for folder, folders, names in _walk(root)
        for name in names
        if name in NAMES and not any(map(is_ignored, Path(folder).relative_to(root).parts))
    )


def _walk(root: Path) -> Iterable[tuple[str, list[str], list[str]]]:
    def fail(error: OSError) -> None:
        raise error

    return os.walk(root, onerror=fail, followlinks=False)


def read_metadata(root: Path, files: Sequence[Path], notices: list[str]) -> Table:
    """Reads the metadata files of a folder; splits are those that the folders of the images are named after.

    Raises:
      UserError: a file is not valid, or names images that do not exist.
    """
    kinds = sorted({file.suffix for file in files})
    if len(kinds) > 1:
        raise UserError(f"{root} has metadata files of several kinds, {' and '.join(kinds)}; keep one kind")
    rows: list[Row] = []
    names: list[str] = []
    for file in files:
        here = _rows(file)
        names += _images(root, file, here)
        rows += here
    if not rows:
        raise UserError(f"{some(map(str, files))}: no rows")
    parts = split_folders(root, sorted(set(names)), notices)
    kept = [row for row, name in enumerate(names) if name in parts]
    columns = list(dict.fromkeys(column for row in rows for column in row if column != FILE))
    cells = {column: [rows[row].get(column) for row in kept] for column in columns}
    return Table(
        place=root,
        features={column: _feature(cells[column]) for column in columns},
        parts=[parts[names[row]] for row in kept],
        values=cells.__getitem__,
        files=lambda: (root, [names[row] for row in kept]),
    )


def _rows(file: Path) -> list[Row]:
    try:
        if file.suffix == ".csv":
            rows = _of_csv(file)
        elif file.suffix == ".jsonl":
            with file.open(encoding="utf-8-sig") as lines:
                rows = [json.loads(line) for line in lines if line.strip()]
        else:
            rows = pyarrow.parquet.read_table(file).to_pylist()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from None
    except (ValueError, csv.Error, pyarrow.ArrowException) as error:
        raise UserError(
            f"{file} is not a valid {file.suffix[1:]} file: {next(iter(str(error).splitlines()), '')}"
        ) from None
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get(FILE), str) or not row[FILE]:
            raise UserError(f"{file}: every row needs {FILE!r}, the path of an image relative to {file.parent}")
    return rows


def _of_csv(file: Path) -> list[Row]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines)
        header = next(reader, [])
        cells = [row for row in reader if row]
    short = next((row for row in cells if len(row) != len(header)), None)
    if short is not None:
        raise ValueError(
            f"row {some(map(repr, short))} does not have the {counted(len(header), 'column')} of the header"
        )
    return [{name: cell.strip() or None for name, cell in zip(header, row, strict=True)} for row in cells]


def _images(root: Path, file: Path, rows: Sequence[Row]) -> list[str]:
    """Returns the images that a metadata file names, relative to `root`."""
    folder = file.parent.relative_to(root)
    names, missing = [], []
    for row in rows:
        inside = Path(os.path.normpath(row[FILE]))
        if inside.is_absolute() or ".." in inside.parts or "\0" in row[FILE]:
            raise UserError(
                f"{file} names {row[FILE]!r}; name images in or below its own folder, as `datasets` requires"
            )
        if not (file.parent / inside).is_file():
            missing.append(row[FILE])
        names.append((folder / inside).as_posix())
    if missing:
        raise UserError(f"{file}: {len(missing):,} of its {counted(len(rows), 'image')} do not exist: {some(missing)}")
    return names


def _feature(cells: Iterable[Any]) -> Feature:
    kinds = {_kind(cell) for cell in cells if cell is not None}
    if kinds <= {WHOLE, NUMBER} and len(kinds) == 2:
        kinds = {NUMBER}
    if not kinds:
        return Feature(TEXT)  # an empty column
    return Feature(kinds.pop() if len(kinds) == 1 else None)


def _kind(cell: Any) -> str | None:
    if isinstance(cell, list):
        return TEXTS if all(isinstance(value, str | int) for value in cell) else None
    return (
        TEXT
        if isinstance(cell, str)
        else WHOLE
        if isinstance(cell, int)
        else NUMBER
        if isinstance(cell, float)
        else None
    )
