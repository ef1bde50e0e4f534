"""What is to be known of images before they are read: sizes, ranges of gray values, and what the fit does to them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from sft_jax.data.images.formats import opened
from sft_jax.data.images.square import Range, Square, is_wide

# The largest values of the usual numbers of bits.
FULL = (255, 1023, 4095, 16383, 65535)
# Up to this much of the images may be cut off, or their proportions change, without a word: less than of 4 : 3.
LITTLE = 0.2


class Seen(NamedTuple):
    """What was seen of one image.

    Attributes:
      size: width and height in pixels.
      values: lowest and highest value of gray in more than 8 bits; None for other images.
      floating: whether those are in floating point.
      reduced: whether it has more than 8 bits a channel, of which Pillow reads the upper 8.
    """

    size: tuple[int, int]
    values: Range | None
    floating: bool
    reduced: bool


def look(path: Path, *, thorough: bool, max_pixels: int) -> Seen:
    """Looks at an image's header, and where its values are of interest or with `thorough` at all of it.

    Raises one of `formats.UNREADABLE`.
    """
    with opened(path, max_pixels) as image:
        size, reduced = image.size, _is_reduced(image)
        if is_wide(image):
            return Seen(size, _extremes(np.asarray(image)), image.mode == "F", reduced)
        if thorough:
            # JPEG is read to its end for an eighth of the pixels: much faster, and as thorough.
            image.draft("RGB", (1, 1))
            ImageOps.exif_transpose(image)
        return Seen(size, None, False, reduced)


def _extremes(values: np.ndarray) -> Range:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _is_reduced(image: Image.Image) -> bool:
    return image.mode in ("RGB", "RGBA", "LA", "CMYK") and any(
        ";16" in str(tile[3]) for tile in getattr(image, "tile", ())
    )


def ranges(images: Sequence[Seen]) -> tuple[Range | None, Range | None, list[str]]:
    """The ranges `integers` and `floats` of `Square` that the training `images` call for, and notices about them."""
    notices = []
    integers = _range([seen.values for seen in images if seen.values and not seen.floating], _whole)
    floats = _range([seen.values for seen in images if seen.values and seen.floating], _floating)
    for kind, found in (("of 16 or 32 bits", integers), ("in floating point", floats)):
        if found is not None:
            notices.append(
                f"gray images {kind}: values {found[0]:g} to {found[1]:g}, the range of the training images, become "
                f"0 to 255"
            )
    reduced = sum(seen.reduced for seen in images)
    if reduced:
        notices.append(f"of {reduced:,} images with 16 bits a channel the upper 8 bits are used")
    return integers, floats, notices


def _range(values: Sequence[Range], rule: Callable[[float, float], Range | None]) -> Range | None:
    if not values:
        return None
    return rule(min(low for low, _ in values), max(high for _, high in values))


def _whole(low: float, high: float) -> Range | None:
    """None where 16 bits are filled."""
    high = next((full for full in FULL if high <= full), high)
    low = min(low, 0)
    return None if (low, high) == (0, FULL[-1]) else (low, high)


def _floating(low: float, high: float) -> Range:
    if (low >= 0 and high <= 1) or low == high:
        return 0.0, max(1.0, high)
    return low, high


def fit_notices(sizes: Sequence[tuple[int, int]] | np.ndarray, square: Square) -> list[str]:
    """What `square` does to images of `sizes`, width and height of each, where that is more than a little."""
    if not len(sizes):
        return []
    sides = np.array(sizes)
    kept = sides.min(1) / sides.max(1)
    if square.fit == "squash":
        stretched = 1 / kept
        if stretched.mean() <= 1 + LITTLE:
            return []
        return [
            f"squash: the images' proportions change by {stretched.mean():.2f} x on average (up to "
            f"{stretched.max():.2f} x); data.fit=pad keeps them"
        ]
    lost = 1 - kept
    if lost.mean() <= LITTLE:
        return []
    if square.fit == "pad":
        return [f"pad: {lost.mean():.0%} of what the network sees is black on average (up to {lost.max():.0%})"]
    return [
        f"centre crop: {lost.mean():.0%} of the image area is cut off on average (up to {lost.max():.0%}); "
        f"data.fit=pad keeps everything"
    ]
