"""Reads masks: images whose pixels are the indices of classes."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from sft_jax.data.images.formats import UNREADABLE, opened, reason
from sft_jax.data.images.segments import Segments
from sft_jax.data.images.square import Square, is_upright
from sft_jax.errors import UserError

# The value of pixels of no class in every mask in memory, whatever the files have; all lower ones can be classes.
VOID = 255
# Formats in which a pixel may have another value than was written.
LOSSY = frozenset({"JPEG", "WEBP", "AVIF", "HEIF"})


class Header(NamedTuple):
    """Width and height of an image in pixels, and whether it is stored upright, as it is shown."""

    size: tuple[int, int]
    upright: bool


def header(path: Path) -> Header | None:
    """Returns the header of a picture; None if it cannot be read, which reading it will say."""
    try:
        with opened(path) as image:
            return Header(image.size, is_upright(image))
    except UNREADABLE:
        return None


def survey(path: Path, content: bytes, segments: Segments | None = None) -> tuple[Header, tuple[int, ...]]:
    """Returns the header of a mask, the file `path` with this content, and its values, ascending.

    `segments` are those of a panoptic mask. Raises UserError if it is not a mask.
    """
    own, upright = decoded(path, content, segments)
    return Header(own.shape[::-1], upright), tuple(np.unique(own).tolist())


def read(path: Path, square: Square, ignored: int | None, segments: Segments | None = None) -> np.ndarray:
    """Reads a mask as the square of its picture: uint8 [side, side], with `VOID` for the value `ignored`.

    `segments` are those of a panoptic mask. Raises UserError if the file cannot be read or is not a mask.
    """
    return squared(voided(values(path, segments), ignored), square)


def voided(values: np.ndarray, ignored: int | None) -> np.ndarray:
    """Returns the values of a mask with `VOID` for the value `ignored`."""
    return values if ignored is None else np.where(values == ignored, np.uint8(VOID), values)


def squared(values: np.ndarray, square: Square) -> np.ndarray:
    """Returns a mask uint8 [height, width] as the square of its picture: uint8 [side, side], `VOID` where padded."""
    return square.of_mask(Image.fromarray(values), VOID)


def values(path: Path, segments: Segments | None = None) -> np.ndarray:
    """Reads the values of a mask: uint8 [height, width]. See `read`."""
    return decoded(path, content_of(path), segments)[0]


def content_of(path: Path) -> bytes:
    """Returns the content of a mask's file. Raises UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"the mask {path} cannot be read: {error.strerror}") from None


def decoded(path: Path | str, content: bytes, segments: Segments | None = None) -> tuple[np.ndarray, bool]:
    """Returns the values, uint8 [height, width], of a mask's file with this content, and if it is upright.

    They are those of gray images, the indices of palettes, or of `segments` the classes, and `VOID` for none. `path` is
    what a UserError calls the mask, which is raised if it is none.
    """
    try:
        with opened(io.BytesIO(content)) as image:
            kind, mode, upright = image.format, image.mode, is_upright(image)
            found = np.asarray(image)
    except UNREADABLE as error:
        raise UserError(f"the mask {path} cannot be read ({reason(error, Path(path))}); repair it") from None
    if kind in LOSSY:
        raise UserError(f"the mask {path} is a {kind} file, which does not keep the indices of classes; use PNG")
    if segments is not None:
        if mode not in ("RGB", "RGBA"):
            raise UserError(f"the mask {path} has no colours (mode {mode}), whose values are the numbers of segments")
        return segments.values(found, path), upright
    if mode not in ("1", "L", "P") and not mode.startswith("I"):
        raise UserError(
            f"the mask {path} has colours (mode {mode}), but each pixel must be the index of a class: save it as "
            f"8-bit gray or with a palette"
        )
    if found.min() < 0 or found.max() > VOID:
        raise UserError(f"the mask {path} has values from {found.min()} to {found.max()}; use only 0 to {VOID}")
    return found.astype(np.uint8), upright
