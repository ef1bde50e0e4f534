"""Normalises the images that callers pass, i.e. paths, Pillow images and arrays of many shapes, to a sequence."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Given = Path | Image.Image | np.ndarray


def one_by_one(images: Any) -> Sequence[Given]:
    """Returns single images: paths, Pillow images, or arrays [height, width, 3] of uint8 or float32.

    Args:
      images: a path, a Pillow image, an array, or a list of these. Arrays are [n, height, width, 3] or [height, width,
        3]; gray images have 1 channel or no channel axis. The dtype is uint8 or floating point in 0..1; gray images
        may also be uint16.

    Raises:
      TypeError: unsupported dtype.
      ValueError: unsupported shape, or values outside 0..1.
    """
    if isinstance(images, str | os.PathLike | Image.Image):
        images = [images]
    if isinstance(images, Iterator):
        images = list(images)
    if isinstance(images, Sequence) and any(isinstance(image, str | os.PathLike | Image.Image) for image in images):
        return [_one(image) for image in images]
    if isinstance(images, Sequence) and len({np.shape(image) for image in images}) > 1:
        return [_one(image) for image in images]
    return _all(np.asarray(images))


def _one(image: Any) -> Given:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str | os.PathLike):
        return Path(image)
    arrays = _all(np.asarray(image))
    if len(arrays) != 1:
        raise ValueError(f"images in a list must be [height, width, 3], not {list(np.shape(image))}")
    return arrays[0]


def _all(images: np.ndarray) -> Sequence[Given]:
    channels = _with_channels(images)
    if images.dtype == np.uint16 and channels.shape[-1] == 1:
        return [Image.fromarray(image) for image in channels[..., 0]]
    if np.issubdtype(images.dtype, np.floating):
        channels = channels.astype(np.float32)
        # Phrased so that NaN fails too.
        if channels.size and not (channels.min() >= 0 and channels.max() <= 1):
            raise ValueError(
                f"floating-point images must be in 0..1, not {channels.min():g}..{channels.max():g}; pass pixel values "
                f"as uint8, and do not normalise them"
            )
    elif images.dtype != np.uint8:
        raise TypeError(f"images must be uint8 in 0..255 or floating point in 0..1, not {images.dtype}")
    return list(np.repeat(channels, 3, -1) if channels.shape[-1] == 1 else channels)


def _with_channels(images: np.ndarray) -> np.ndarray:
    """Reshapes to [n, height, width, 1 or 3]. Raises ValueError."""
    shape = images.shape
    if images.ndim == 2:
        images = images[None, ..., None]
    elif images.ndim == 3 and shape[-1] in (1, 3):
        images = images[None]
    elif images.ndim == 3 and shape[0] in (1, 3):
        raise ValueError(
            f"images of shape {list(shape)} are ambiguous, gray or channels first: pass [n, height, width, 1] or "
            f"[height, width, 3]"
        )
    elif images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:3]:
        raise ValueError(f"images must be [n, height, width, 3], or 1 channel for gray, not {list(shape)}")
    return images
