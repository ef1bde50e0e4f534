"""Creates folders of small images, and returns the error messages of reading them."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sft_jax.data.sources.folder import load_folder
from sft_jax.errors import UserError

SIZE = 8


def noise_image(seed, width=12, height=10):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def fill(folder, classes, count, start=0):
    """Writes `count` images of each class, all distinct."""
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            noise_image(start + 1000 * index + number).save(folder / name / f"{number:03}.png")


def message(path, **settings):
    with pytest.raises(UserError) as caught:
        load_folder(path, SIZE, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def png(width, height, *, depth=8, color=2, data=b"") -> bytes:
    """Returns a PNG file whose header claims this size."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
