"""Converts images of a dataset to small ones embedded in the page."""

import base64
import io
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image

from sft_jax.data.dataset import Split
from sft_jax.inference.spans import Span

# Larger images are reduced to this size in pixels; images above LOSSLESS are saved as JPEG.
LARGEST, LOSSLESS = 160, 64


class Picture(NamedTuple):
    """An image with its caption: what it is, what was predicted, and how sure or how wrong that is.

    Attributes:
      uri: the image, see `data_uri`.
      described: all of it in one line, for readers that do not see the image.
      truth, predicted, note: the parts of the caption.
      file: name of the file; empty if it is none.
      heat: the image under a heat map, see `Explainer.uris`; empty without one.
      spans: of a text in place of an image, its parts; empty for an image.
    """

    uri: str
    described: str
    truth: str
    predicted: str
    note: str
    file: str = ""
    heat: str = ""
    spans: tuple[Span, ...] = ()


def data_uris(split: Split, rows: Iterable[int]) -> dict[int, str]:
    """Maps each of `rows` to that image of `split` as a data URI."""
    return {row: data_uri(image) for row, image in images_of(split, rows).items()}


def images_of(split: Split, rows: Iterable[int]) -> dict[int, np.ndarray]:
    """Maps each of `rows` to that image of `split`, uint8 [height, width, 3]."""
    wanted = sorted(set(rows))
    if not wanted:
        return {}
    images = next(split.batches(np.array([wanted], np.int32)))["image"]
    return dict(zip(wanted, images, strict=True))


def data_uri(image: np.ndarray) -> str:
    """Encodes an image uint8 [height, width, 3] as a data URI: PNG if it is small, otherwise JPEG."""
    picture = Image.fromarray(image)
    picture.thumbnail((LARGEST, LARGEST))
    lossless = max(picture.size) <= LOSSLESS
    buffer = io.BytesIO()
    if lossless:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "JPEG", quality=85)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
