"""Images of any size and mode as square RGB arrays: the part of their way to the network that the CPU does."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from sft_jax.data.images.formats import MAX_PIXELS, opened

# Resizing keeps an image's proportions; of a strip longer than this many times its width only the middle is resized.
LONGEST = 100
FITS = ("crop", "pad", "squash")
INTERPOLATIONS = ("bilinear", "bicubic")

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Square:
    """How an image becomes the square that a network is given. Resizing is antialiased.

    Attributes:
      size: side of the square in pixels.
      fit: what is done to images that are not square. crop: the shorter side is brought to `resize` and the centre is
        cut out, as torchvision's `Resize(resize)`, `CenterCrop(size)`; pad: the longer side is brought to `size`, and
        the rest is black; squash: both sides are brought to `size`.
      resize: of crop; None for `size`.
      interpolation: bilinear or bicubic.
      integers: (lowest, highest) value of gray images of 16 or 32 bits, which become 0 and 255; None for all that 16
        bits hold.
      floats: likewise of gray images in floating point; None for 0..1, or 0..255 where an image has values above 1.
      keep_square: square images keep their size: the device resizes them.
    """

    size: int
    fit: str = "crop"
    resize: int | None = None
    interpolation: str = "bilinear"
    integers: Range | None = None
    floats: Range | None = None
    keep_square: bool = False

    def read(self, path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """`of_image` of a file (the first frame). Raises one of `formats.UNREADABLE`."""
        with opened(path, max_pixels) as image:
            return self.of_image(image)

    def of_image(self, image: Image.Image) -> np.ndarray:
        """An image as uint8 [size, size, 3], or of the side that it has where `keep_square` says so.

        EXIF rotation is applied, and transparency is laid over white.
        """
        image = self._rgb(ImageOps.exif_transpose(image))
        return np.asarray(image if self._keeps(image.size) else self._squared(image))

    def of_array(self, image: np.ndarray) -> np.ndarray:
        """`of_image` of an array [height, width, 3], uint8, or float32 in 0..1, which gives float32."""
        if self._keeps(image.shape[:2]):
            return image
        if image.dtype == np.uint8:
            return np.asarray(self._squared(Image.fromarray(image)))
        channels = (Image.fromarray(image[..., channel]) for channel in range(image.shape[-1]))
        # Bicubic curves overshoot.
        return np.clip(np.stack([np.asarray(self._squared(channel)) for channel in channels], -1), 0, 1)

    def _keeps(self, sides: tuple[int, ...]) -> bool:
        return self.keep_square and sides[0] == sides[1]

    def _squared(self, image: Image.Image) -> Image.Image:
        method = Image.Resampling[self.interpolation.upper()]
        if self.fit == "squash":
            return image.resize((self.size, self.size), method)
        if self.fit == "pad":
            longest = max(image.size)
            width, height = (max(1, round(self.size * side / longest)) for side in image.size)
            square = Image.new(image.mode, (self.size, self.size))
            square.paste(image.resize((width, height), method), ((self.size - width) // 2, (self.size - height) // 2))
            return square
        image = _shortened(image)
        shorter = self.resize or self.size
        width, height = (shorter * side // min(image.size) for side in image.size)
        image = image.resize((width, height), method)
        # Rounded half to even, as torchvision has it.
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return image.crop((left, top, left + self.size, top + self.size))

    def _rgb(self, image: Image.Image) -> Image.Image:
        if is_wide(image):
            return Image.fromarray(self._eight_bits(image)).convert("RGB")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return image.convert("RGB")

    def _eight_bits(self, image: Image.Image) -> np.ndarray:
        """Gray of more than 8 bits, or in floating point, as uint8 [height, width]."""
        values = np.asarray(image)
        limits = self.floats if image.mode == "F" else self.integers
        if limits is None and image.mode != "F":
            # Pillow's own conversion clips at 255.
            return (np.clip(values, 0, 65535).astype(np.uint16) >> 8).astype(np.uint8)
        values = np.nan_to_num(values.astype(np.float32))
        low, high = limits or (0.0, 1.0 if values.max() <= 1 else 255.0)
        return np.clip(np.round((values - low) * (255 / (high - low))), 0, 255).astype(np.uint8)


def is_wide(image: Image.Image) -> bool:
    """Whether an image is gray of more than 8 bits, or in floating point."""
    return image.mode == "F" or image.mode.startswith("I")


def _shortened(image: Image.Image) -> Image.Image:
    longest = LONGEST * min(image.size)
    if max(image.size) <= longest:
        return image
    # As much from both ends.
    left, top = (max(0, (side - longest + 1) // 2) for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top))
