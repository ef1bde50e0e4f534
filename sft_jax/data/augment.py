"""Image processing on the device: resizing, augmentation, normalisation. Pure functions, part of the compiled step."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from sft_jax.data import policies

# Indices folded into the random key: crop, flip, policy, erasing.
PURPOSES = range(4)

Policy = Callable[[jax.Array, jax.Array], jax.Array]


def preprocess(images: jax.Array, *, size: int, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Resizes and normalises: uint8 [batch, height, width, 3] -> float32 [batch, size, size, 3].

    The result is (pixel / 255 - mean) / std.

    Raises:
      TypeError: the images are not uint8; floating-point images might already be scaled.
    """
    return _normalize(_resized(images, size), mean, std)


def preprocess_unit(images: jax.Array, *, size: int, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Like `preprocess`, for float32 images [batch, height, width, 3] in 0..1: (value - mean) / std."""
    return _normalize(_resize(images * 255, size), mean, std)


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
    policy: Policy | None = None,
    erasing: float = 0.0,
) -> jax.Array:
    """Like `preprocess`, with optional random horizontal flip, random crop, policy and random erasing per image.

    Matches torchvision's `RandomCrop(size, padding=crop_padding)` (black padding, in pixels after resizing) and
    `RandomHorizontalFlip(0.5)`.

    Args:
      images: uint8 [local batch, height, width, 3], this device's shard of the batch.
      key: random key for the global batch, so that results do not depend on the number of devices.
      first: position of the first image in the global batch; may be traced.
      total: global batch size.
      size: side length of the result in pixels.
      mean: see `preprocess`.
      std: see `preprocess`.
      crop_padding: maximum shift of the crop in pixels; 0 for no crop.
      flip: whether to flip.
      policy: (one image [size, size, 3] with integer values in 0..255, key) -> image.
      erasing: probability of random erasing.
    """
    local = len(images)
    crop_key, flip_key, policy_key, erase_key = (jax.random.fold_in(key, purpose) for purpose in PURPOSES)

    def own(draws: jax.Array) -> jax.Array:
        return lax.dynamic_slice_in_dim(draws, first, local)

    pixels = _resized(images, size)
    if flip:
        draws = own(jax.random.bernoulli(flip_key, shape=(total,)))
        pixels = jnp.where(draws[:, None, None, None], pixels[:, :, ::-1], pixels)
    if crop_padding:
        shifts = own(jax.random.randint(crop_key, (total, 2), 0, 2 * crop_padding + 1))
        edge = (crop_padding, crop_padding)
        padded = jnp.pad(pixels, ((0, 0), edge, edge, (0, 0)))
        crop = functools.partial(lax.dynamic_slice, slice_sizes=(size, size, 3))
        pixels = jax.vmap(lambda image, shift: crop(image, (shift[0], shift[1], 0)))(padded, shifts)
    if policy is not None:
        pixels = jax.vmap(policy)(jnp.round(pixels.astype(jnp.float32)), own(jax.random.split(policy_key, total)))
    inputs = _normalize(pixels, mean, std)
    if erasing:
        inputs = jax.vmap(functools.partial(_erased, rate=erasing))(inputs, own(jax.random.split(erase_key, total)))
    return inputs


def make_preprocess(config: ConfigDict, size: int | None = None) -> Callable[[jax.Array], jax.Array]:
    """Returns `preprocess` with the settings of `config`, the section `data` of the config; `size` overrides it."""
    return functools.partial(preprocess, size=size or config.size, mean=config.mean, std=config.std)


def make_augment(
    config: ConfigDict, size: int | None = None
) -> Callable[[jax.Array, jax.Array, jax.Array | int, int], jax.Array]:
    """Returns `augment` with the settings of `config`, the section `data` of the config; `size` overrides it."""
    policy: Policy | None = None
    if config.auto_augment == "trivial":
        policy = policies.trivial_augment
    elif config.auto_augment == "rand":
        policy = functools.partial(
            policies.rand_augment,
            operations=config.rand_augment_operations,
            magnitude=config.rand_augment_magnitude,
        )
    return functools.partial(
        augment,
        size=size or config.size,
        mean=config.mean,
        std=config.std,
        crop_padding=config.crop_padding,
        flip=config.flip,
        policy=policy,
        erasing=config.random_erasing,
    )


def of_image(function: Callable) -> Callable:
    """Turns a function of images (and more) into one of batches, which changes their "image" and keeps the rest."""

    def of_batch(batch: dict[str, jax.Array], *arguments) -> dict[str, jax.Array]:
        return {**batch, "image": function(batch["image"], *arguments)}

    return of_batch


def _erased(image: jax.Array, key: jax.Array, *, rate: float) -> jax.Array:
    """Random erasing (Zhong et al., 2020, arXiv:1708.04896) of a normalised image [height, width, 3], with zeros.

    Area and aspect ratio follow `torchvision.transforms.RandomErasing`: 2 to 33% of the image, 0.3 to 3.3 times as
    wide as high. A rectangle that does not fit is clipped, where torchvision draws again.
    """
    height, width, _ = image.shape
    on_key, area_key, ratio_key, place_key = jax.random.split(key, 4)
    area = jax.random.uniform(area_key, minval=0.02, maxval=0.33) * height * width
    ratio = jnp.exp(jax.random.uniform(ratio_key, minval=jnp.log(0.3), maxval=jnp.log(3.3)))
    sides = jnp.round(jnp.minimum(jnp.stack([jnp.sqrt(area / ratio), jnp.sqrt(area * ratio)]), min(height, width)))
    free = jnp.array([height, width], jnp.float32) - sides
    corner = jnp.floor(jax.random.uniform(place_key, (2,)) * (free + 1))
    rows, columns = jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32)
    inside_rows = (rows >= corner[0]) & (rows < corner[0] + sides[0])
    inside_columns = (columns >= corner[1]) & (columns < corner[1] + sides[1])
    inside = inside_rows[:, None] & inside_columns[None, :] & jax.random.bernoulli(on_key, rate)
    return jnp.where(inside[..., None], 0.0, image)


def _resized(images: jax.Array, size: int) -> jax.Array:
    """Returns uint8 if no resizing is needed, as bytes move faster than floats; otherwise float32 in 0..255."""
    if images.dtype != jnp.uint8:
        raise TypeError(f"images must be uint8 in 0..255, not {images.dtype}; do not scale them")
    return _resize(images, size)


def _resize(images: jax.Array, size: int) -> jax.Array:
    batch, height, width, channels = images.shape
    if height == width == size:
        return images
    return jax.image.resize(images.astype(jnp.float32), (batch, size, size, channels), "linear", antialias=True)


def _normalize(pixels: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    scaled = pixels.astype(jnp.float32) / 255
    return (scaled - jnp.array(mean, jnp.float32)[None, None, None]) / jnp.array(std, jnp.float32)[None, None, None]
