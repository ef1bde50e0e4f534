"""Decoded splits, kept in the user's cache folder: reading CIFAR-10 again takes no decoding of 60,000 pictures."""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from sft_jax.errors import UserError
from sft_jax.runtime.cache import cache_folder
from sft_jax.runtime.files import digest, written_whole

Arrays = dict[str, np.ndarray]

FORMAT = "2"
# All kept splits together; those used longest ago go first.
TOTAL_BYTES = 4 << 30
# Larger prepared sets are decoded each time: to tell by their contents whether they changed would take as long.
SOURCE_BYTES = 1 << 30


def source_digest(folder: Path) -> str | None:
    """SHA-256 over the files of a prepared set, names and contents; None where they are too large for that."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if sum(path.stat().st_size for path in files) > SOURCE_BYTES:
        return None
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def kept(key: tuple[str, ...], read: Callable[[], Arrays]) -> Arrays:
    """The arrays that `read` returns, from the cache where the same `key` was read before.

    A file that is damaged or cannot be written is no reason to fail: the split is read again.

    Args:
      key: everything the images depend on, the digest of their source first.
      read: decodes the split.
    """
    folder = cache_folder("splits")
    if folder is None:
        return read()
    path = folder / (hashlib.sha256("\n".join((FORMAT, *key)).encode()).hexdigest() + ".safetensors")
    found = _load(path)
    if found is None:
        found = read()
        _store(path, found)
    return found


def _load(path: Path) -> Arrays | None:
    try:
        with safetensors.safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            expected = (file.metadata() or {}).get("digest")
        if digest(arrays, {}) != expected:
            return None
        os.utime(path)  # used just now
        return arrays
    except (OSError, safetensors.SafetensorError, TypeError):
        return None


def _store(path: Path, arrays: Arrays) -> None:
    # safetensors has an error of its own for a full disk.
    with contextlib.suppress(OSError, UserError, safetensors.SafetensorError):
        with written_whole(path) as temporary:
            safetensors.numpy.save_file(arrays, temporary, metadata={"digest": digest(arrays, {})})
        _bound(path.parent)


def _bound(folder: Path) -> None:
    files = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: -path.stat().st_mtime)
    total = 0
    for path in files:
        total += path.stat().st_size
        if total > TOTAL_BYTES:
            path.unlink()
