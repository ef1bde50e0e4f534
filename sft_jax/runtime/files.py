"""Files that are written whole or not at all, and checksums that tell whether they still hold what was written."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from sft_jax.errors import UserError


def digest(arrays: Mapping[str, np.ndarray], contents: Mapping[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the arrays, and over the JSON beside them."""
    total = hashlib.sha256(json.dumps(contents, sort_keys=True).encode())
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        total.update(f"{key} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes `value`, whole or not at all. Raises UserError where it cannot."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line, whole or not at all. Raises UserError where it cannot."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Writes `text`, whole or not at all. Raises UserError where it cannot."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content`, whole or not at all. Raises UserError where it cannot."""
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, NAME.PID.tmp, to write to: it takes the place of `path` when the block ends
    without an error, and is removed otherwise. What killed processes left of the same file is removed too.

    Raises:
      UserError: an OSError in the block or in replacing the file; what was at `path` before is still there.
    """
    temporary = path.parent / f"{path.name}.{os.getpid()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, NAME.PID.tmp, to write to: it becomes `folder` when the block ends without an
    error, unless another process made that in the meantime, and is removed otherwise. Raises OSError.
    """
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        _remove_leftovers(folder)
        temporary.mkdir(parents=True)
        yield temporary
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_leftovers(path: Path) -> None:
    pattern = re.compile(re.escape(path.name) + r"\.([0-9]{1,9})\.tmp")
    with contextlib.suppress(OSError):  # they do no harm
        for sibling in path.parent.iterdir():
            match = pattern.fullmatch(sibling.name)
            if match and not psutil.pid_exists(int(match[1])):
                if sibling.is_dir():
                    shutil.rmtree(sibling)
                else:
                    sibling.unlink(missing_ok=True)
