"""Decoded images on disk, in the user's cache folder, mapped into memory: files are decoded once for all runs.

KEY.pixels holds the images one after the other, KEY.rows.npy says of each whether it was decoded, with a checksum.
"""

import contextlib
import hashlib
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL

from sft_jax.data.images.square import Square
from sft_jax.runtime.cache import cache_folder
from sft_jax.runtime.files import written_whole

FORMAT = "1"
PIXELS, ROWS = ".pixels", ".rows.npy"
# Limits for all decoded images together; the least recently used are deleted first.
TOTAL_BYTES = 32 << 30
DISK_FRACTION = 0.5
# What is set in a row's entry, beside the checksum in the lower 32 bits, if the image was decoded.
DECODED = 1 << 32


class Stored:
    """The squares of image files on disk.

    Attributes:
      file: the file of the pixels.
      images: uint8 [n, side, side, 3], mapped into memory; only valid where `decoded` says so.
    """

    def __init__(self, file: Path, count: int, side: int):
        self.file = file
        self._shape = count, side, side, 3
        self._entries = _entries(file, count)
        self._lock = threading.Lock()
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as pixels:
            pixels.truncate(int(np.prod(self._shape)))  # takes no room until it is written
        self.images = np.memmap(file, np.uint8, "r", shape=self._shape)

    @property
    def decoded(self) -> np.ndarray:
        """Whether each image was decoded, bool [n]."""
        return self._entries >= DECODED

    def is_intact(self, row: int) -> bool:
        """Returns whether an image was decoded and its pixels are those that were written."""
        entry = self._entries[row]
        return bool(entry and entry == _entry(self.images[row].tobytes()))

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[[int, np.ndarray], None]]:
        """Yields a function for any thread that writes the image of a row; at the end, what was written counts.

        Raises OSError.
        """
        with self.file.open("r+b", buffering=0) as pixels:

            def write(row: int, image: np.ndarray) -> None:
                content = image.tobytes()
                # Not through the mapped memory, where a full disk would end the process.
                with self._lock:
                    pixels.seek(row * len(content))
                    written = pixels.write(content)
                if written != len(content):
                    raise OSError(f"{self.file}: the disk is full")
                self._entries[row] = _entry(content)

            try:
                yield write
            finally:
                with written_whole(_rows_of(self.file)) as temporary, temporary.open("wb") as rows:
                    np.save(rows, self._entries)


def stored(root: Path, paths: Sequence[Path], square: Square) -> Stored | None:
    """Returns the place of decoded images; None if caching is disabled, or they would take too much of the disk.

    Args:
      root: the folder of the images; they may be moved with it.
      paths: the files. Those that change get another place.
      square: how they are decoded.

    Raises:
      OSError: a file is not accessible.
    """
    folder = cache_folder("images")
    if folder is None or not paths:
        return None
    total = hashlib.sha256(f"{FORMAT} {PIL.__version__} {square!r}\n".encode())
    for path in paths:
        status = path.stat()
        name = os.fsencode(path.relative_to(root))
        total.update(b"%b\0%d %d\n" % (name, status.st_size, status.st_mtime_ns))
    file = folder / (total.hexdigest()[:32] + PIXELS)
    try:
        return Stored(file, len(paths), square.side) if _has_room(file, len(paths) * square.side**2 * 3) else None
    except OSError:
        return None  # a folder that cannot be written to


def _rows_of(file: Path) -> Path:
    return file.with_suffix(ROWS)


def _entries(file: Path, count: int) -> np.ndarray:
    """Returns uint64 [n]: for each image 0, or `DECODED` and its checksum."""
    rows = _rows_of(file)
    with contextlib.suppress(OSError, ValueError):
        entries = np.load(rows, allow_pickle=False)
        if entries.shape == (count,) and entries.dtype == np.uint64 and file.exists():
            os.utime(rows)  # marks it as recently used
            return entries
    return np.zeros(count, np.uint64)


def _entry(content: bytes) -> int:
    return DECODED | zlib.crc32(content)


def _has_room(file: Path, needed: int) -> bool:
    """Returns whether a file of `needed` bytes may be there, after deleting the least recently used others for it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    others = [path for path in file.parent.glob(f"*{PIXELS}") if path != file]
    sizes = {path: path.stat().st_size for path in (*others, *([file] if file.exists() else []))}
    free = shutil.disk_usage(file.parent).free
    allowed = min(TOTAL_BYTES, int(DISK_FRACTION * (free + sum(sizes.values()))))
    if needed > allowed:
        return False
    total = needed + sum(sizes[path] for path in others)
    for path in sorted(others, key=_last_used):
        if total <= allowed:
            break
        total -= sizes[path]
        path.unlink(missing_ok=True)
        _rows_of(path).unlink(missing_ok=True)
    return True


def _last_used(path: Path) -> float:
    try:
        return _rows_of(path).stat().st_mtime
    except OSError:
        return 0.0
