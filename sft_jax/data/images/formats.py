"""Supported image formats, and opening files by content rather than by suffix."""

import contextlib
import functools
import importlib.util
import io
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image, UnidentifiedImageError

from sft_jax.errors import UserError

# Pillow's names. Excluded are documents and drawings (EPS would start a program), videos, icons, and data formats that
# Pillow can only identify.
FORMATS = frozenset(
    {"AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP"}
)
HEIF_SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
HEIF_HINT = "pip install pillow-heif"
# Larger images are refused, including small files that claim to be large ("decompression bombs").
MAX_PIXELS = 500_000_000
# Pillow's decoders raise nearly anything on damaged or hostile files: struct.error, EOFError, ZeroDivisionError, ...
UNREADABLE = (Exception,)

_lock = threading.Lock()
_users = 0
_pillows_limit: int | None = None
# The file that a thread is reading, to attribute Pillow's warnings.
_reading = threading.local()


class TooLargeError(Exception):
    """An image has more pixels than are allowed."""


@functools.cache
def formats() -> tuple[str, ...]:
    """Returns the formats that can be read here: `FORMATS`, and HEIF if pillow-heif is installed.

    Formats without a signature accept nearly any file, and come last.
    """
    Image.init()
    known = FORMATS
    if importlib.util.find_spec("pillow_heif"):
        with contextlib.suppress(ImportError):  # installed, but for another platform
            import pillow_heif

            pillow_heif.register_heif_opener()
            known = known | {"HEIF"}
    return tuple(sorted(known & Image.OPEN.keys(), key=lambda name: (not _is_signed(name), name)))


def _is_signed(name: str) -> bool:
    return Image.OPEN[name][1] is not None


def suffixes() -> frozenset[str]:
    """Returns the lower-case suffixes of the formats in `formats`."""
    known = formats()  # may register further suffixes
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def is_image(path: Path) -> bool:
    """Returns whether the file at `path` has an image signature, regardless of its suffix; pixels are not read."""
    try:
        with _unlimited(), Image.open(path, formats=[name for name in formats() if _is_signed(name)]):
            return True
    except UNREADABLE:
        return False


@contextlib.contextmanager
def opened(file: Path | io.BytesIO, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Context manager that opens the image in a file. Raises one of `UNREADABLE`."""
    _reading.file = file if isinstance(file, Path) else None
    try:
        with _unlimited(), Image.open(file, formats=formats()) as image:
            if image.width * image.height > max_pixels:
                raise TooLargeError(
                    f"it has {image.width * image.height:,} pixels, more than {max_pixels:,}; to allow more, use "
                    f"--config.data.max_pixels (predict: --max-pixels)"
                )
            yield image
    finally:
        _reading.file = None


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Context manager that raises UserError, which names `path`, for one of `UNREADABLE`."""
    try:
        yield
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read: {reason(error, path)}") from error


@contextlib.contextmanager
def _unlimited() -> Iterator[None]:
    """Lifts Pillow's pixel limit, which is global to the process, while any thread is inside."""
    global _users, _pillows_limit
    with _lock:
        if not _users:
            _pillows_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                Image.MAX_IMAGE_PIXELS = _pillows_limit


def reason(error: BaseException, path: Path) -> str:
    """Says in a few words why the file at `path` could not be read."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is HEIF: {HEIF_HINT}" if _is_heif(path) else "not an image, or damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _is_heif(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head[4:8] == b"ftyp" and head[8:] in HEIF_BRANDS


class FileWarnings:
    """Context manager that collects Pillow's warnings about image files, from any thread.

    Attributes:
      lines: one per kind of warning, with the name of the first file.
    """

    def __init__(self) -> None:
        self._files: dict[str, list[str]] = {}
        self._first: dict[str, str] = {}

    def __enter__(self) -> "FileWarnings":
        self._outer = warnings.catch_warnings()
        self._outer.__enter__()
        self._show = warnings.showwarning
        warnings.filterwarnings("always", module=r"PIL\b")
        warnings.showwarning = self._add
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._outer.__exit__(kind, error, trace)

    @property
    def lines(self) -> list[str]:
        """The collected warnings, see the class."""
        more = {kind: len(set(files)) - 1 for kind, files in self._files.items()}
        return [
            f"{files[0]}: {self._first[kind]}" + (f" (and {more[kind]:,} more files)" if more[kind] else "")
            for kind, files in self._files.items()
        ]

    def _add(self, message: Warning | str, category: type[Warning], *rest: Any, **options: Any) -> None:
        file = getattr(_reading, "file", None)
        if file is None:
            self._show(message, category, *rest, **options)
            return
        text = next(iter(str(message).splitlines()), category.__name__).strip()
        kind = re.sub(r"\d+", "0", text)
        with _lock:
            self._first.setdefault(kind, text)
            self._files.setdefault(kind, []).append(str(file))
