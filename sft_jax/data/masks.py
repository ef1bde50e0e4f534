"""Masks on the device: cropped, resized and augmented as their images, each pixel keeping the value of one pixel.

Masks are uint8 [n, height, width], the indices of classes, or `images.mask.VOID`. Pure functions, part of compiled
steps.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from sft_jax.data import augment, crops, policies
from sft_jax.data.augment import Augmentation, Draws
from sft_jax.data.images.mask import VOID


def make_preprocess(crop_pct: float, size: int) -> Callable[[jax.Array], jax.Array]:
    """Returns the function that crops and resizes masks as `pixels.make_preprocess` does their images, for evaluation.

    It maps uint8 [n, side, side] to uint8 [n, size, size].
    """
    return lambda masks: resized(crops.cropped(masks, size, crop_pct), size)


def augmented(
    augmentation: Augmentation, masks: jax.Array, key: jax.Array, first: jax.Array | int, total: int
) -> jax.Array:
    """Augments masks as `augmentation` does their images: uint8 [local batch, height, width] to [..., size, size].

    The random draws are the same. What is outside a shifted or rotated image is `VOID`. Colours have no counterpart,
    and the geometry of policies has none here.

    Args:
      augmentation: without a policy and without erasing.
      masks: this device's shard of the batch.
      key, first, total: see `Augmentation.__call__`.
    """
    assert augmentation.policy is None
    assert not augmentation.erasing
    draw = Draws(key, first, total, len(masks))
    never = jnp.zeros(len(masks), bool)
    across = draw.coins(augment.FLIP) if augmentation.flip else never
    down = draw.coins(augment.VERTICAL_FLIP) if augmentation.vertical_flip else never
    if augmentation.crop_scale:
        areas, sides = (augmentation.crop_scale, augmentation.crop_ratio), (masks.shape[1], masks.shape[2])
        boxes = draw.own(crops.random_boxes(draw.key(augment.BOX), total, sides, *areas))
        masks = resampled(masks, boxes, augmentation.size, jnp.stack([down, across], 1))
    else:
        masks = resized(masks, augmentation.size)
        masks = jnp.where(across[:, None, None], masks[:, :, ::-1], masks)
        masks = jnp.where(down[:, None, None], masks[:, ::-1], masks)
        if augmentation.crop_padding:
            masks = _shifted(masks, draw, augmentation.crop_padding)
    if augmentation.rotation:
        angles = jnp.deg2rad(augmentation.rotation * draw.uniform(augment.ROTATION, -1, 1))
        masks = jax.vmap(_rotated)(masks, angles)
    return masks


def resized(masks: jax.Array, size: int) -> jax.Array:
    """Resizes masks [n, height, width] to [n, size, size]: the value of the nearest pixel."""
    if masks.shape[1:] == (size, size):
        return masks
    rows, columns = (_nearest(jnp.zeros(()), jnp.full((), side), size) for side in masks.shape[1:])
    return masks[:, rows][:, :, columns]


def resampled(masks: jax.Array, boxes: jax.Array, size: int, flips: jax.Array) -> jax.Array:
    """Resizes each mask's box as `crops.resample` does that of its image, to the value of the nearest pixel."""

    def one(mask: jax.Array, box: jax.Array, flip: jax.Array) -> jax.Array:
        places = []
        for axis, side in enumerate(mask.shape):
            place = _nearest(box[axis], box[axis + 2], size)
            places.append(jnp.where(flip[axis], side - 1 - place, place))
        return mask[places[0]][:, places[1]]

    return jax.vmap(one)(masks, boxes, flips)


def _nearest(start: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """Computes the pixel of an axis's part that is nearest to the centre of each of `size` pixels: int32 [size]."""
    centres = (jnp.arange(size, dtype=jnp.float32) + 0.5) * (length.astype(jnp.float32) / size)
    return (start + jnp.clip(jnp.floor(centres), 0, length - 1)).astype(jnp.int32)


def _shifted(masks: jax.Array, draw: Draws, padding: int) -> jax.Array:
    _, height, width = masks.shape
    shifts = draw.own(jax.random.randint(draw.key(augment.CROP), (draw.total, 2), 0, 2 * padding + 1))
    edge = (padding, padding)
    padded = jnp.pad(masks, ((0, 0), edge, edge), constant_values=VOID)
    crop = functools.partial(lax.dynamic_slice, slice_sizes=(height, width))
    return jax.vmap(lambda mask, shift: crop(mask, (shift[0], shift[1])))(padded, shifts)


def _rotated(mask: jax.Array, angle: jax.Array) -> jax.Array:
    # Outside is 0 in an image, which is why the values are one higher.
    turned = policies.rotate(mask[..., None].astype(jnp.float32) + 1, angle)[..., 0].astype(jnp.int32)
    return jnp.where(turned == 0, VOID, turned - 1).astype(jnp.uint8)
