"""Cache of decoded splits in the user's cache folder, so that CIFAR-10's 60,000 images are decoded only once."""

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
# Limit for all cached splits together; the least recently used are evicted first.
TOTAL_BYTES = 4 << 30
# Larger prepared datasets are not cached: hashing them to detect changes would take as long as decoding.
SOURCE_BYTES = 1 << 30


def source_digest(folder: Path) -> str | None:
    """Returns the SHA-256 of the names and contents of a prepared dataset's files; None if they are too large."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if sum(path.stat().st_size for path in files) > SOURCE_BYTES:
        return None
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def cached(key: tuple[str, ...], read: Callable[[], Arrays]) -> Arrays:
    """Returns the result of `read`, from the cache if there is an entry for `key`.

    Damaged entries are read again, and failures to write are ignored.

    Args:
      key: everything that determines the images, starting with the digest of their source.
      read: decodes the split.
    """
    folder = cache_folder("splits")
    if folder is None:
        return read()
    path = folder / (hashlib.sha256("\n".join((FORMAT, *key)).encode()).hexdigest() + ".safetensors")
    arrays = _load(path)
    if arrays is None:
        arrays = read()
        _store(path, arrays)
    return arrays


def _load(path: Path) -> Arrays | None:
    try:
        with safetensors.safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            expected = (file.metadata() or {}).get("digest")
        if digest(arrays, {}) != expected:
            return None
        os.utime(path)  # marks it as recently used
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
