"""Pictures of any size and mode as square RGB arrays, as torchvision's `Resize(size)`, `CenterCrop(size)` make them."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# On damaged or hostile files Pillow's decoders raise nearly anything: struct.error, EOFError, ZeroDivisionError, ...
UNREADABLE = (Exception,)
# Resizing keeps a picture's proportions; of a strip longer than this many times its width only the middle is resized.
LONGEST = 100


def to_square(image: Image.Image, size: int) -> np.ndarray:
    """The shorter side is brought to `size` pixels (bilinear, antialiased), then the centre is cut out.

    EXIF rotation is applied, transparency is laid over white, 16-bit gray is scaled to 8 bits.

    Returns:
      uint8 [size, size, 3].
    """
    return np.asarray(_squared(_upright(image), size))


def array_to_square(image: np.ndarray, size: int) -> np.ndarray:
    """`to_square` of an image [height, width, 3], uint8 or float32 in any range."""
    if image.dtype == np.uint8:
        return to_square(Image.fromarray(image), size)
    channels = (Image.fromarray(image[..., channel]) for channel in range(image.shape[-1]))
    return np.stack([np.asarray(_squared(channel, size)) for channel in channels], -1)


def read_square(path: Path, size: int, *, keep_square: bool = False) -> np.ndarray:
    """`to_square` of an image file (the first frame); with `keep_square` a square picture keeps the size that it has.

    Raises one of `UNREADABLE`.
    """
    with Image.open(path) as image:
        if keep_square and image.width == image.height:
            return np.asarray(_upright(image))
        return to_square(image, size)


def _squared(image: Image.Image, size: int) -> Image.Image:
    image = _shortened(image)
    width, height = (size * side // min(image.size) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    # Rounded half to even, as torchvision has it.
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _shortened(image: Image.Image) -> Image.Image:
    longest = LONGEST * min(image.size)
    if max(image.size) <= longest:
        return image
    # As much from both ends.
    left, top = (max(0, (side - longest + 1) // 2) for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top))


def _upright(image: Image.Image) -> Image.Image:
    """In RGB, turned as its EXIF data say."""
    return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion of 16-bit gray clips at 255.
        gray = np.asarray(image).astype(np.uint32) >> 8
        image = Image.fromarray(gray.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
