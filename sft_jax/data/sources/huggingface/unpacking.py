"""Unpacks the images of Parquet files into a folder of the cache, because Parquet has no fast access to single rows."""

import atexit
import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

from sft_jax.data.images.files import SUFFIXES
from sft_jax.data.sources.listing import counted
from sft_jax.errors import UserError
from sft_jax.runtime.cache import cache_folder
from sft_jax.runtime.estimate import size_text
from sft_jax.runtime.files import folder_written_whole

FORMAT = "1"
# Rows that are read at a time.
BLOCK = 64
# Of the formats that `datasets` writes; files are opened by their content, suffixes are for people.
SIGNATURES = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png"}
# What `datasets` calls the splits.
FOLDERS = {"train": "train", "val": "validation", "test": "test", None: "images"}


class Shard(NamedTuple):
    """A Parquet file, the split of its rows, and their number."""

    path: Path
    part: str | None
    rows: int


def unpacked(place: Path, shards: Sequence[Shard], column: str, notices: list[str]) -> tuple[Path, list[str]]:
    """Returns a folder of the images of `column`, and their names in the order of the rows, e.g. train/00000012.jpg.

    They are unpacked once. The number is the row in its split.

    Args:
      place: what the user named.
      shards: the files.
      column: the column of the images: bytes, or structs of bytes and a path.
      notices: receives a line about where they are.

    Raises:
      UserError: a row has no image, a file is damaged, or the disk is too small.
    """
    facts = [(str(shard.path.absolute()), *_state(shard.path), str(shard.part)) for shard in shards]
    key = hashlib.sha256(repr((FORMAT, column, facts)).encode()).hexdigest()[:24]
    base = cache_folder("unpacked") or Path(_temporary())
    folder = base / key
    names = _listed(folder, shards)
    if names is None:
        shutil.rmtree(folder, ignore_errors=True)  # somebody deleted some of its images
        try:
            _unpack(folder, place, shards, column)
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error}; SFT_JAX_CACHE=FOLDER names another place") from None
        names = _listed(folder, shards)
        assert names is not None
    notices.append(f"{place}: {counted(len(names))} of {counted(len(shards), 'Parquet file')} unpacked in {folder}")
    return folder, names


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


_own: list[str] = []


def _temporary() -> str:
    """Returns a folder of this process, for when caching is disabled; it is removed at exit."""
    if not _own:
        _own.append(tempfile.mkdtemp(prefix="sft_jax_unpacked_"))
        atexit.register(shutil.rmtree, _own[0], ignore_errors=True)
    return _own[0]


def _listed(folder: Path, shards: Sequence[Shard]) -> list[str] | None:
    """Returns the names of the images in the order of the rows; None unless all of them are there."""
    here: dict[str | None, list[str]] = {}
    for part in dict.fromkeys(shard.part for shard in shards):
        below = folder / FOLDERS[part]
        here[part] = sorted(os.listdir(below)) if below.is_dir() else []
        if len(here[part]) != sum(shard.rows for shard in shards if shard.part == part):
            return None
    following = {part: iter(names) for part, names in here.items()}
    return [f"{FOLDERS[shard.part]}/{next(following[shard.part])}" for shard in shards for _ in range(shard.rows)]


def _unpack(folder: Path, place: Path, shards: Sequence[Shard], column: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed, free = sum(_bytes_of(shard.path, column) for shard in shards), shutil.disk_usage(folder.parent).free
    if needed > free:
        raise UserError(
            f"{place}: unpacking its images needs {size_text(needed)} in {folder.parent}, which has {size_text(free)} "
            f"free; make room, or name another place with SFT_JAX_CACHE=FOLDER"
        )
    with folder_written_whole(folder) as temporary:
        done: dict[str | None, int] = {}
        for shard in shards:
            (temporary / FOLDERS[shard.part]).mkdir(parents=True, exist_ok=True)
            for image in _images(place, shard.path, column):
                row = done[shard.part] = done.get(shard.part, -1) + 1
                suffix = next((suffix for start, suffix in SIGNATURES.items() if image[0].startswith(start)), image[1])
                (temporary / FOLDERS[shard.part] / f"{row:08}{suffix}").write_bytes(image[0])


def _images(place: Path, path: Path, column: str) -> Iterator[tuple[bytes, str]]:
    """Yields the content of each row's image, and the suffix of its name if that is one of an image."""
    for row, cell in enumerate(_cells(path, column)):
        yield _content(place, path, row, cell)


def _cells(path: Path, column: str) -> Iterator[Any]:
    with reading(path):
        file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
    with file:
        batches = file.iter_batches(BLOCK, columns=[column])
        while True:
            with reading(path):
                batch = next(batches, None)
            if batch is None:
                return
            yield from batch.column(0).to_pylist()


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raises UserError for a Parquet file that turns out to be damaged or unreadable in the context."""
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:  # for damaged pages pyarrow raises OSError
        why = next(iter(str(error).splitlines()), "")
        raise UserError(f"{path} cannot be read as a Parquet file ({why}); obtain it again") from error


def _content(place: Path, path: Path, row: int, cell: Any) -> tuple[bytes, str]:
    name = (cell.get("path") if isinstance(cell, dict) else None) or ""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    suffix = os.path.splitext(name)[1].lower()
    if content is None and name:
        outside = (place if place.is_dir() else place.parent) / name
        if not outside.is_file():
            raise UserError(f"row {row} of {path} has no image, only the path {name}, which does not exist here")
        content = outside.read_bytes()
    if content is None:
        raise UserError(f"row {row} of {path} has no image; remove such rows, for instance with datasets' filter")
    return content, suffix if suffix in SUFFIXES else ""


def _bytes_of(path: Path, column: str) -> int:
    """Returns the uncompressed size of a column."""
    metadata = pyarrow.parquet.read_metadata(path)
    groups = (metadata.row_group(place) for place in range(metadata.num_row_groups))
    columns = (group.column(place) for group in groups for place in range(group.num_columns))
    return sum(each.total_uncompressed_size for each in columns if each.path_in_schema.split(".")[0] == column)
