"""Mixup and CutMix, as pure functions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sft_jax.ops.collectives import reversed_batch

# Arrays by name, each with the images on its first axis.
Batch = dict[str, jax.Array]


class Mixture(NamedTuple):
    """A batch in which each image is mixed with another one.

    Attributes:
      batch: the mixed images with their own targets.
      partners: the targets of the images mixed in.
      lam: float32 [], weight of an image's own targets; `partners` have weight 1 - lam.
    """

    batch: Batch
    partners: Batch
    lam: jax.Array

    def main_targets(self) -> Batch:
        """Returns the targets with the larger weight."""
        return {name: jnp.where(self.lam >= 0.5, self.batch[name], other) for name, other in self.partners.items()}


def mix(
    batch: Batch, key: jax.Array, *, targets: tuple[str, ...], mixup: float, cutmix: float, axis_name: str | None = None
) -> Mixture:
    """Mixes the batch with itself in reversed order, as in timm.

    mixup (Zhang et al., 2018, arXiv:1710.09412): x = lam * x_own + (1 - lam) * x_other, lam ~ Beta(mixup, mixup).
    CutMix (Yun et al., 2019, arXiv:1905.04899): pastes a rectangle of the other image, with relative area 1 - lam
    before clipping at the border. If both are enabled, one of them is drawn for each batch.

    Args:
      batch: this device's examples: "image" [local batch, height, width, channels] and targets.
      key: random key, the same on every device.
      targets: names of the targets.
      mixup: parameter of the Beta distribution; 0 to disable.
      cutmix: parameter of the Beta distribution; 0 to disable.
      axis_name: the mapped axis over which the batch is sharded.
    """
    mix_key, cut_key, box_key, choice_key = jax.random.split(key, 4)
    images = batch["image"]
    others = reversed_batch(images, axis_name)
    partners = {name: reversed_batch(batch[name], axis_name) for name in targets}
    blended = boxed = Mixture(batch, partners, jnp.ones((), jnp.float32))
    if mixup:
        lam = jax.random.beta(mix_key, mixup, mixup)
        blended = Mixture({**batch, "image": _blend(lam.astype(images.dtype), images, others)}, partners, lam)
    if cutmix:
        inside = _box(box_key, 1 - jax.random.beta(cut_key, cutmix, cutmix), *images.shape[1:3])
        cut = jnp.where(inside[None, :, :, None], others, images)
        boxed = Mixture({**batch, "image": cut}, partners, 1 - inside.mean())
    if not (mixup and cutmix):
        return blended if mixup else boxed
    first = jax.random.bernoulli(choice_key)
    return jax.tree.map(lambda one, two: jnp.where(first, one, two), blended, boxed)


def _blend(lam: jax.Array, own: jax.Array, other: jax.Array) -> jax.Array:
    return lam * own + (1 - lam) * other


def _box(key: jax.Array, area: jax.Array, height: int, width: int) -> jax.Array:
    """Returns bool [height, width], true in a random box with the image's aspect ratio and relative `area`, clipped."""
    centres = jax.random.uniform(key, (2,))
    masks = []
    for centre, length in zip(centres, (height, width), strict=True):
        half = jnp.sqrt(area) / 2
        low, high = (jnp.clip(jnp.round(length * (centre + side * half)), 0, length) for side in (-1, 1))
        places = jnp.arange(length, dtype=jnp.float32)
        masks.append((places >= low) & (places < high))
    return masks[0][:, None] & masks[1][None, :]
