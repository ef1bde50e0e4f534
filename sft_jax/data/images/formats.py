"""Which formats of image files are read, and how a file is opened: by its content, whatever its name says."""

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

# By Pillow's names. Left out are documents and drawings (EPS would start a program), films, icons, and data files that
# Pillow knows by name only.
FORMATS = frozenset(
    {"AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP"}
)
HEIF_SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
HEIF_HINT = "pip install pillow-heif"
# Larger images are refused; so is a small file that claims to be one ("decompression bomb").
MAX_PIXELS = 500_000_000
# On damaged or hostile files Pillow's decoders raise nearly anything: struct.error, EOFError, ZeroDivisionError, ...
UNREADABLE = (Exception,)

_lock = threading.Lock()
_users = 0
_pillows_limit: int | None = None
# The file that a thread is reading, for what Pillow warns of meanwhile.
_reading = threading.local()


class TooLargeError(Exception):
    """An image has more pixels than are allowed."""


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that can be read here: `FORMATS`, and HEIF where pillow-heif is installed. Those without a signature
    take nearly anything for theirs, and come last.
    """
    Image.init()
    known = FORMATS
    if importlib.util.find_spec("pillow_heif"):
        with contextlib.suppress(ImportError):  # installed, but not for this machine
            import pillow_heif

            pillow_heif.register_heif_opener()
            known = known | {"HEIF"}
    return tuple(sorted(known & Image.OPEN.keys(), key=lambda name: (not _is_signed(name), name)))


def _is_signed(name: str) -> bool:
    return Image.OPEN[name][1] is not None


def suffixes() -> frozenset[str]:
    """Of files in `formats`, in small letters."""
    known = formats()  # which may register some
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def is_image(path: Path) -> bool:
    """Whether the file at `path`, whatever its suffix, begins as an image does; its pixels are not read."""
    try:
        with _unlimited(), Image.open(path, formats=[name for name in formats() if _is_signed(name)]):
            return True
    except UNREADABLE:
        return False


@contextlib.contextmanager
def opened(file: Path | io.BytesIO, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """The image in a file, for as long as its pixels are needed. Raises one of `UNREADABLE`."""
    _reading.file = file if isinstance(file, Path) else None
    try:
        with _unlimited(), Image.open(file, formats=formats()) as image:
            if image.width * image.height > max_pixels:
                raise TooLargeError(
                    f"it has {image.width * image.height:,} pixels, more than {max_pixels:,}; to allow more: "
                    f"--config.data.max_pixels, of predict --max-pixels"
                )
            yield image
    finally:
        _reading.file = None


@contextlib.contextmanager
def _unlimited() -> Iterator[None]:
    """Without the limit of Pillow's, which is one of the whole process, as long as any thread is within."""
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
    """Why the file at `path` could not be read, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is HEIF: {HEIF_HINT}" if _is_heif(path) else "it is no image, or damaged"
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
    """Collects what Pillow warns of while image files are read within, in any thread.

    Attributes:
      lines: one for each kind of warning, with the name of the first file.
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
        """See the class."""
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
