"""Losses and mixtures of images that keep a network from fitting its training set too well. Pure functions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sft_jax.ops.collectives import reversed_batch


class Mixture(NamedTuple):
    """A batch, each image mixed with another one.

    Attributes:
      images: [batch, height, width, channels].
      labels: int [batch], of the images themselves.
      partners: int [batch], labels of the images mixed in.
      share: float32 [], weight of `labels`; `partners` has the rest.
    """

    images: jax.Array
    labels: jax.Array
    partners: jax.Array
    share: jax.Array

    def main_labels(self) -> jax.Array:
        """The labels with the greater weight, int [batch]."""
        return jnp.where(self.share >= 0.5, self.labels, self.partners)


def mix(
    images: jax.Array, labels: jax.Array, key: jax.Array, *, mixup: float, cutmix: float, axis_name: str | None = None
) -> Mixture:
    """Mixes every image of the batch with the one at the same place from its end, as timm does.

    mixup (Zhang et al., 2018, arXiv:1710.09412): x = share * x_own + (1 - share) * x_other, share ~ Beta(mixup, mixup).
    CutMix (Yun et al., 2019, arXiv:1905.04899): a rectangle of the other image, of the area 1 - share before it is
    clipped at the border. Where both are on, one of them is drawn for the batch.

    Args:
      images: [share of the batch, height, width, channels].
      labels: int [share of the batch].
      key: the same on every device.
      mixup: parameter of the Beta distribution; 0 for none.
      cutmix: likewise.
      axis_name: the mapped axis over which the batch is spread.
    """
    mix_key, cut_key, box_key, choice_key = jax.random.split(key, 4)
    others, partners = reversed_batch(images, axis_name), reversed_batch(labels, axis_name)
    blended = boxed = Mixture(images, labels, partners, jnp.ones((), jnp.float32))
    if mixup:
        share = jax.random.beta(mix_key, mixup, mixup)
        blended = Mixture(_blend(share.astype(images.dtype), images, others), labels, partners, share)
    if cutmix:
        inside = _box(box_key, 1 - jax.random.beta(cut_key, cutmix, cutmix), *images.shape[1:3])
        boxed = Mixture(jnp.where(inside[None, :, :, None], others, images), labels, partners, 1 - inside.mean())
    if not (mixup and cutmix):
        return blended if mixup else boxed
    first = jax.random.bernoulli(choice_key)
    return jax.tree.map(lambda one, two: jnp.where(first, one, two), blended, boxed)


def _blend(share: jax.Array, own: jax.Array, other: jax.Array) -> jax.Array:
    return share * own + (1 - share) * other


def _box(key: jax.Array, area: jax.Array, height: int, width: int) -> jax.Array:
    """bool [height, width], true in a rectangle of the image's shape that covers `area` of it, less what sticks out."""
    centres = jax.random.uniform(key, (2,))
    masks = []
    for centre, length in zip(centres, (height, width), strict=True):
        half = jnp.sqrt(area) / 2
        low, high = (jnp.clip(jnp.round(length * (centre + side * half)), 0, length) for side in (-1, 1))
        places = jnp.arange(length, dtype=jnp.float32)
        masks.append((places >= low) & (places < high))
    return masks[0][:, None] & masks[1][None, :]
