"""Converts images of any size and mode to square RGB arrays: the host-side part of preprocessing."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from sft_jax.data.images.formats import MAX_PIXELS, opened

# Maximum aspect ratio for resizing; of a longer strip only the middle is used.
LONGEST = 100
FITS = ("crop", "pad", "squash")
INTERPOLATIONS = ("bilinear", "bicubic")
DECODINGS = ("fast", "exact")
# Pixels a side that a reduced copy must have at least, relative to those that are needed; as in Pillow's `thumbnail`.
SPARE = 2
# EXIF orientations: as stored, and those that exchange width and height.
UPRIGHT, SIDEWAYS = 1, range(5, 9)

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Square:
    """Host-side preprocessing of an image to a square. Resizing is antialiased.

    Attributes:
      size: side length of the network's input in pixels.
      fit: how images become square. crop: resize the shorter side to `resize`, then centre-crop, like torchvision's
        `Resize(resize)`, `CenterCrop(side)`; pad: resize the longer side to `side`, then pad with black; squash: resize
        both sides to `side`.
      resize: shorter side before the crop; None for `side`.
      interpolation: bilinear or bicubic.
      integers: (lowest, highest) value of 16- or 32-bit gray images, mapped to 0 and 255; None for the full 16-bit
        range.
      floats: likewise for floating-point gray images; None for 0..1, or 0..255 if an image has values above 1.
      keep_square: leave square images at their size, for the device to resize.
      kept: side length of the square if it differs from `size`, for the device to crop and resize.
      decoding: a name in `DECODINGS`. exact: images are decoded whole, then resized; fast: JPEG files are decoded at
        half, a quarter or an eighth of their size if that leaves `SPARE` times the pixels that are needed a side, which
        changes pixels by a few of 255 at most. Images that were decoded elsewhere are not affected.
    """

    size: int
    fit: str = "crop"
    resize: int | None = None
    interpolation: str = "bilinear"
    integers: Range | None = None
    floats: Range | None = None
    keep_square: bool = False
    kept: int | None = None
    decoding: str = "exact"

    @property
    def side(self) -> int:
        """Side length of the square."""
        return self.kept or self.size

    def read(self, path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """Reads a file (its first frame) as `of_image` does. Raises one of `formats.UNREADABLE`."""
        with opened(path, max_pixels) as image:
            return self.of_image(image)

    def of_image(self, image: Image.Image) -> np.ndarray:
        """Converts an image to uint8 [side, side, 3], or keeps its side length if `keep_square` applies.

        EXIF rotation is applied, and transparency is composited over white.
        """
        size, content = image.size, self._drafted(image)
        if content is None:
            image = self.rgb(image)
            return np.asarray(image if self._keeps(image.size) else self._squared(image))
        if _orientation(image) in SIDEWAYS:
            size, content = size[::-1], content[::-1]
        return np.asarray(self._squared(self.rgb(image), size, content))

    def of_array(self, image: np.ndarray) -> np.ndarray:
        """Converts an array [height, width, 3], uint8 or float32 in 0..1, to a square of the same dtype."""
        if self._keeps(image.shape[:2]):
            return image
        if image.dtype == np.uint8:
            return np.asarray(self._squared(Image.fromarray(image)))
        channels = (Image.fromarray(image[..., channel]) for channel in range(image.shape[-1]))
        # Bicubic interpolation overshoots.
        return np.clip(np.stack([np.asarray(self._squared(channel)) for channel in channels], -1), 0, 1)

    def of_mask(self, mask: Image.Image, void: int) -> np.ndarray:
        """Converts a mask, an 8-bit image of its picture's size, as `of_image` its picture: uint8 [side, side].

        Values are those of the nearest pixels; where the picture is padded, they are `void`.
        """
        if self._keeps(mask.size):
            return np.asarray(mask)
        return np.asarray(self._squared(mask, method=Image.Resampling.NEAREST, fill=void))

    def _keeps(self, sides: tuple[int, ...]) -> bool:
        return self.keep_square and sides[0] == sides[1]

    def _squared(
        self,
        image: Image.Image,
        size: tuple[int, int] | None = None,
        content: tuple[float, float] | None = None,
        *,
        method: Image.Resampling | None = None,
        fill: int = 0,
    ) -> Image.Image:
        """Resizes and crops or pads an image, or one of `size` whose reduced copy is the upper left part `content`.

        `method` replaces `interpolation`; `fill` is the value of the padding.
        """
        method = Image.Resampling[self.interpolation.upper()] if method is None else method
        box = None if content is None else (0, 0, *content)
        if self.fit == "squash":
            return image.resize((self.side, self.side), method, box)
        if self.fit == "pad":
            longest = max(size or image.size)
            width, height = (max(1, round(self.side * side / longest)) for side in size or image.size)
            square, resized = (
                Image.new(image.mode, (self.side, self.side), fill),
                image.resize((width, height), method, box),
            )
            square.paste(resized, ((self.side - width) // 2, (self.side - height) // 2))
            return square
        image = _shortened(image)
        shorter = self.resize or self.side
        width, height = (shorter * side // min(size or image.size) for side in size or image.size)
        image = image.resize((width, height), method, box)
        # Rounds half to even, like torchvision.
        left, top = round((width - self.side) / 2), round((height - self.side) / 2)
        return image.crop((left, top, left + self.side, top + self.side))

    def divisor(self, size: tuple[int, int]) -> int:
        """Returns by how much a JPEG file of this width and height is divided as it is decoded: 1, 2, 4 or 8."""
        if self.decoding == "exact" or self._keeps(size) or max(size) > LONGEST * min(size):
            return 1
        given = max(size) if self.fit == "pad" else min(size)
        needed = SPARE * ((self.resize or self.side) if self.fit == "crop" else self.side)
        return next((divisor for divisor in (8, 4, 2) if given >= divisor * needed), 1)

    def _drafted(self, image: Image.Image) -> tuple[float, float] | None:
        """Has a JPEG file decoded at a fraction of its size; None if it is to be decoded whole.

        Returns width and height of its content, which are no whole numbers if those of the file cannot be divided.
        """
        divisor = self.divisor(image.size)
        if divisor == 1:
            return None
        if any(side % divisor for side in image.size) and not is_upright(image):
            return None  # the parts of pixels at the right and below would be elsewhere
        width, height = (side // divisor for side in image.size)
        # None of other formats, or if it is decoded already.
        drafted = image.draft(None, (width, height))
        return drafted and drafted[1][2:]

    def rgb(self, image: Image.Image) -> Image.Image:
        """Converts an image to 8-bit RGB at its own size, as `of_image` does before resizing."""
        image.load()
        if not is_upright(image):  # otherwise Pillow would copy it
            image = ImageOps.exif_transpose(image)
        if is_wide(image):
            return Image.fromarray(self._eight_bits(image)).convert("RGB")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return image if image.mode == "RGB" else image.convert("RGB")

    def _eight_bits(self, image: Image.Image) -> np.ndarray:
        """Scales gray of more than 8 bits, or floating point, to uint8 [height, width]."""
        values = np.asarray(image)
        limits = self.floats if image.mode == "F" else self.integers
        if limits is None and image.mode != "F":
            # Pillow's own conversion would clip at 255.
            return (np.clip(values, 0, 65535).astype(np.uint16) >> 8).astype(np.uint8)
        values = np.nan_to_num(values.astype(np.float32))
        low, high = limits or (0.0, 1.0 if values.max() <= 1 else 255.0)
        return np.clip(np.round((values - low) * (255 / (high - low))), 0, 255).astype(np.uint8)


def is_upright(image: Image.Image) -> bool:
    """Returns whether an image is stored as it is shown."""
    return _orientation(image) == UPRIGHT


def _orientation(image: Image.Image) -> Any:
    return image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)


def upright(image: Image.Image) -> tuple[int, int]:
    """Returns height and width of an image as it is shown, after EXIF rotation."""
    width, height = image.size
    return (width, height) if _orientation(image) in SIDEWAYS else (height, width)


def is_wide(image: Image.Image) -> bool:
    """Returns whether an image is gray with more than 8 bits, or floating point."""
    return image.mode == "F" or image.mode.startswith("I")


def _shortened(image: Image.Image) -> Image.Image:
    longest = LONGEST * min(image.size)
    if max(image.size) <= longest:
        return image
    # Cuts equally from both ends.
    left, top = (max(0, (side - longest + 1) // 2) for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top))
