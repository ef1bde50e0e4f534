"""Surveys images before they are read: sizes, gray value ranges, and how much the fit crops, pads or distorts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from sft_jax.data.images.formats import opened
from sft_jax.data.images.square import Range, Square, is_wide

# Largest values of the usual bit depths.
FULL = (255, 1023, 4095, 16383, 65535)
# Fraction that may be cropped, padded or distorted without a notice; an aspect ratio of 4:3 exceeds it.
LITTLE = 0.2


class Seen(NamedTuple):
    """Properties of one image.

    Attributes:
      size: width and height in pixels.
      jpeg: whether it is a JPEG file.
      values: lowest and highest value of a gray image with more than 8 bits; None for other images.
      floating: whether these values are floating point.
      reduced: whether it has more than 8 bits per channel, of which Pillow reads only the upper 8.
    """

    size: tuple[int, int]
    jpeg: bool
    values: Range | None
    floating: bool
    reduced: bool


def look(path: Path, *, thorough: bool, max_pixels: int) -> Seen:
    """Examines an image's header, and its pixels as well if their range matters or `thorough` is set.

    Raises one of `formats.UNREADABLE`.
    """
    with opened(path, max_pixels) as image:
        size, jpeg, reduced = image.size, image.format == "JPEG", _is_reduced(image)
        if is_wide(image):
            return Seen(size, jpeg, _extremes(np.asarray(image)), image.mode == "F", reduced)
        if thorough:
            # Decodes JPEG at an eighth of the resolution: reads all of the file, but much faster.
            image.draft("RGB", (1, 1))
            ImageOps.exif_transpose(image)
        return Seen(size, jpeg, None, False, reduced)


def _extremes(values: np.ndarray) -> Range:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _is_reduced(image: Image.Image) -> bool:
    return image.mode in ("RGB", "RGBA", "LA", "CMYK") and any(
        ";16" in str(tile[3]) for tile in getattr(image, "tile", ())
    )


def ranges(images: Sequence[Seen]) -> tuple[Range | None, Range | None, list[str]]:
    """Derives the ranges `integers` and `floats` of `Square` from the training `images`, with notices about them."""
    notices = []
    integers = _range([seen.values for seen in images if seen.values and not seen.floating], _whole)
    floats = _range([seen.values for seen in images if seen.values and seen.floating], _floating)
    for kind, limits in (("16- or 32-bit", integers), ("floating-point", floats)):
        if limits is not None:
            notices.append(
                f"{kind} gray images: {limits[0]:g} to {limits[1]:g}, the range of the training images, is mapped to "
                f"0 to 255"
            )
    reduced = sum(seen.reduced for seen in images)
    if reduced:
        notices.append(f"images with 16 bits per channel ({reduced:,}): only the upper 8 bits are used")
    return integers, floats, notices


def _range(values: Sequence[Range], rule: Callable[[float, float], Range | None]) -> Range | None:
    if not values:
        return None
    return rule(min(low for low, _ in values), max(high for _, high in values))


def _whole(low: float, high: float) -> Range | None:
    """Rounds the range up to a usual bit depth; None for the full 16 bits."""
    high = next((full for full in FULL if high <= full), high)
    low = min(low, 0)
    return None if (low, high) == (0, FULL[-1]) else (low, high)


def _floating(low: float, high: float) -> Range:
    if (low >= 0 and high <= 1) or low == high:
        return 0.0, max(1.0, high)
    return low, high


def decoding_notices(images: Sequence[Seen], square: Square) -> list[str]:
    """Returns a notice if `square` decodes files among `images` at a fraction of their size."""
    reduced = sum(seen.jpeg and square.divisor(seen.size) > 1 for seen in images)
    if not reduced:
        return []
    return [
        f"{reduced:,} large JPEG file{'s' if reduced > 1 else ''} decoded at a fraction of the size; "
        f"data.decoding=exact decodes all of it"
    ]


def fit_notices(sizes: Sequence[tuple[int, int]] | np.ndarray, square: Square) -> list[str]:
    """Returns notices if `square` crops, pads or distorts images of `sizes` (width, height) by more than `LITTLE`."""
    if not len(sizes):
        return []
    sides = np.array(sizes)
    kept = sides.min(1) / sides.max(1)
    if square.fit == "squash":
        stretched = 1 / kept
        if stretched.mean() <= 1 + LITTLE:
            return []
        return [
            f"squash: aspect ratios change by {stretched.mean():.2f} x on average (up to {stretched.max():.2f} x); "
            f"data.fit=pad preserves them"
        ]
    lost = 1 - kept
    if lost.mean() <= LITTLE:
        return []
    if square.fit == "pad":
        return [f"pad: {lost.mean():.0%} of the input is black padding on average (up to {lost.max():.0%})"]
    return [
        f"centre crop: {lost.mean():.0%} of the image area is cropped on average (up to {lost.max():.0%}); "
        f"data.fit=pad keeps it all"
    ]
