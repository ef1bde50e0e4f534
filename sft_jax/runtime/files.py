"""Files that are written whole or not at all, and checksums that tell whether they still hold what was written."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

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
    """A temporary file beside `path` to write to, which takes its place when the block ends without an error.

    Raises:
      UserError: it cannot be written; what was at `path` before is still there.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
