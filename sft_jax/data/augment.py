"""What is done to images on the device: resizing, augmentation, scaling. Pure functions, part of the compiled step."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict


def preprocess(images: jax.Array, *, size: int, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """uint8 [batch, height, width, 3] -> normalised float32 [batch, size, size, 3]: (pixel / 255 - mean) / std.

    Raises:
      TypeError: the images are not uint8; floating-point ones may be scaled already.
    """
    return _normalize(_resized(images, size), mean, std)


def augment(
    images: jax.Array,
    key: jax.Array,
    first: jax.Array | int,
    total: int,
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    crop_padding: int,
    flip: bool,
) -> jax.Array:
    """`preprocess` with a random crop and a random horizontal flip of each image.

    As torchvision's `RandomCrop(size, padding=crop_padding)` (black borders, of the network's pixels) and
    `RandomHorizontalFlip(0.5)`.

    Args:
      images: uint8 [share, height, width, 3], this device's part of the batch.
      key: decides the draws of the whole batch, so that any number of devices augments an image alike.
      first: position in the whole batch of the first image; may be traced.
      total: size of the whole batch.
      size: side of the result in pixels.
      mean: see `preprocess`.
      std: see `preprocess`.
      crop_padding: the crop is moved by up to this many pixels each way; 0 for none.
      flip: whether to flip.
    """
    share = len(images)
    crop_key, flip_key = jax.random.split(key)
    pixels = _resized(images, size)
    if flip:
        draws = lax.dynamic_slice_in_dim(jax.random.bernoulli(flip_key, shape=(total,)), first, share)
        pixels = jnp.where(draws[:, None, None, None], pixels[:, :, ::-1], pixels)
    if crop_padding:
        shifts = jax.random.randint(crop_key, (total, 2), 0, 2 * crop_padding + 1)
        shifts = lax.dynamic_slice_in_dim(shifts, first, share)
        edge = (crop_padding, crop_padding)
        padded = jnp.pad(pixels, ((0, 0), edge, edge, (0, 0)))
        crop = functools.partial(lax.dynamic_slice, slice_sizes=(size, size, 3))
        pixels = jax.vmap(lambda image, shift: crop(image, (shift[0], shift[1], 0)))(padded, shifts)
    return _normalize(pixels, mean, std)


def make_preprocess(config: ConfigDict) -> Callable[[jax.Array], jax.Array]:
    """`preprocess` with the settings of `config`, the part `data` of the configuration."""
    return functools.partial(preprocess, size=config.size, mean=config.mean, std=config.std)


def make_augment(config: ConfigDict) -> Callable[[jax.Array, jax.Array, jax.Array | int, int], jax.Array]:
    """`augment` with the settings of `config`, the part `data` of the configuration."""
    settings = {"size": config.size, "mean": config.mean, "std": config.std}
    return functools.partial(augment, **settings, crop_padding=config.crop_padding, flip=config.flip)


def _resized(images: jax.Array, size: int) -> jax.Array:
    """uint8 where nothing has to be resized, since a byte moves faster than a float; else float32 in 0..255."""
    if images.dtype != jnp.uint8:
        raise TypeError(f"images must be uint8 in 0..255, not {images.dtype}: scaling is done here, once")
    batch, height, width, channels = images.shape
    if height == width == size:
        return images
    return jax.image.resize(images.astype(jnp.float32), (batch, size, size, channels), "linear", antialias=True)


def _normalize(pixels: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    scaled = pixels.astype(jnp.float32) / 255
    return (scaled - jnp.array(mean, jnp.float32)[None, None, None]) / jnp.array(std, jnp.float32)[None, None, None]
