"""What is measured of each picture while it is decoded: digest, perceptual hash, size, brightness, sharpness."""

import hashlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

# Pictures are reduced to this many pixels before brightness and sharpness are measured: what a network sees of them.
SEEN = 256
# Sides of the gray picture and of the low frequencies that a perceptual hash is made of.
HASHED, LOW = 32, 8


class Look(NamedTuple):
    """Measures of one picture.

    Attributes:
      digest: of its size and pixels, 16 bytes.
      hashes: perceptual hashes of 64 bits, of the picture and of its mirror image, uint64 [2].
      width, height: in pixels.
      low, dark, high: brightness that 1, 5 and 99% of the pixels are below, 0 to 1.
      sharpness: standard deviation of the Laplacian, relative to that of the picture.
    """

    digest: bytes
    hashes: np.ndarray
    width: int
    height: int
    low: float
    dark: float
    high: float
    sharpness: float


def look(image: Image.Image) -> Look:
    """Measures an RGB picture."""
    digest = hashlib.blake2b(f"{image.size}".encode(), digest_size=16)
    digest.update(image.tobytes())
    reduced = image.copy()
    reduced.thumbnail((SEEN, SEEN), Image.Resampling.BOX)
    low, dark, high = np.percentile(_brightness(np.asarray(reduced, np.float32) / 255), (1, 5, 99))
    gray = reduced.convert("L")
    edges = np.asarray(gray.filter(_LAPLACIAN), np.float32) - 128
    # Pillow leaves the border as it is.
    sharpness = float(edges[1:-1, 1:-1].std() / max(np.asarray(gray).std(), 1.0)) if min(gray.size) > 2 else 1.0
    return Look(digest.digest(), hashes(image), *image.size, float(low), float(dark), float(high), sharpness)


# Halved, so that few values are cut off at 0 and 255.
_LAPLACIAN = ImageFilter.Kernel((3, 3), (0, 1, 0, 1, -4, 1, 0, 1, 0), scale=2, offset=128)


def _brightness(pixels: np.ndarray) -> np.ndarray:
    """Returns the perceived brightness of pixels [..., 3] (Finley, HSP colour model), as CleanVision measures it."""
    return np.sqrt(pixels**2 @ np.array([0.241, 0.691, 0.068], np.float32))


def hashes(image: Image.Image) -> np.ndarray:
    """Returns the perceptual hashes of a picture and of its mirror image, uint64 [2].

    They are the signs of the lowest frequencies, relative to their median, as in the pHash of the package imagehash
    (Krawetz, "Looks like it", 2011).
    """
    from scipy.fft import dctn

    gray = np.asarray(image.convert("L").resize((HASHED, HASHED), Image.Resampling.LANCZOS), np.float64)
    waves = dctn(gray)[:LOW, :LOW]
    # Frequencies of odd order across change their sign in the mirror.
    mirrored = waves * np.where(np.arange(LOW) % 2, -1, 1)
    bits = np.stack([(each > np.median(each)).reshape(-1) for each in (waves, mirrored)])
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)
