"""Preprocessing of images on the device: cropping, resizing, normalisation. Pure functions, part of compiled steps."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sft_jax.data import crops

# jax's name of each interpolation.
METHODS = {"bilinear": "linear", "bicubic": "cubic"}


def preprocess(images: jax.Array, **settings: Any) -> jax.Array:
    """Crops, resizes and normalises: uint8 [batch, side, side, 3] -> float32 [batch, size, size, 3].

    The result is (pixel / 255 - mean) / std. See `_preprocessed` for the settings.

    Raises:
      TypeError: the images are not uint8; floating-point images might already be scaled.
    """
    check_bytes(images)
    return _preprocessed(images, **settings)


def preprocess_unit(images: jax.Array, **settings: Any) -> jax.Array:
    """Like `preprocess`, for float32 images [batch, side, side, 3] in 0..1: (value - mean) / std."""
    return _preprocessed(images * 255, **settings)


def _preprocessed(
    images: jax.Array,
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bilinear",
    crop_pct: float = 1.0,
    place: crops.Place = crops.CENTRE,
) -> jax.Array:
    """Preprocesses images in 0..255. See `crops.cropped` for `crop_pct`, `place`; `interpolation` is in `METHODS`."""
    return normalize(resize(crops.cropped(images, size, crop_pct, place), size, interpolation), mean, std)


def make_preprocess(
    config: ConfigDict, size: int | None = None, place: crops.Place = crops.CENTRE
) -> Callable[[jax.Array], jax.Array]:
    """Returns `preprocess` with the settings of `config`, the section `data` of the config; `size` overrides it."""
    return functools.partial(
        preprocess,
        size=size or config.size,
        mean=config.mean,
        std=config.std,
        interpolation=config.interpolation,
        crop_pct=config.crop_pct,
        place=place,
    )


def mirrored(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """Returns `function` followed by a horizontal flip."""
    return lambda images: function(images)[:, :, ::-1]


def of_image(function: Callable) -> Callable:
    """Turns a function of images (and more) into one of batches, which changes their "image" and keeps the rest."""

    def of_batch(batch: dict[str, jax.Array], *arguments) -> dict[str, jax.Array]:
        return {**batch, "image": function(batch["image"], *arguments)}

    return of_batch


def check_bytes(images: jax.Array) -> None:
    """Raises TypeError if the images are not uint8."""
    if images.dtype != jnp.uint8:
        raise TypeError(f"images must be uint8 in 0..255, not {images.dtype}; do not scale them")


def resize(images: jax.Array, size: int, interpolation: str) -> jax.Array:
    """Returns uint8 if no resizing is needed, as bytes move faster than floats; otherwise float32 in 0..255."""
    batch, height, width, channels = images.shape
    if height == width == size:
        return images
    shape = batch, size, size, channels
    resized = jax.image.resize(images.astype(jnp.float32), shape, METHODS[interpolation], antialias=True)
    return jnp.clip(resized, 0, 255) if interpolation == "bicubic" else resized  # it overshoots


def normalize(pixels: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Returns (pixels / 255 - mean) / std, float32."""
    scaled = pixels.astype(jnp.float32) / 255
    return (scaled - jnp.array(mean, jnp.float32)[None, None, None]) / jnp.array(std, jnp.float32)[None, None, None]
