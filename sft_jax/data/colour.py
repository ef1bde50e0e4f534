"""Colour augmentations of torchvision on the device. Images are float32 [height, width, 3], integers in 0..255."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

# Standard deviations of `blur` in pixels, as SimCLR and timm draw them, and the radius of its kernel.
SIGMAS, RADIUS = (0.1, 2.0), 6
_GRAY = (0.2989, 0.587, 0.114)


def blend(image: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns factor * image + (1 - factor) * other, clipped to 0..255 and truncated."""
    return jnp.trunc(jnp.clip(factor * image + (1 - factor) * other, 0, 255))


def gray(image: jax.Array) -> jax.Array:
    """Converts to luminance, in three equal channels, as `torchvision...rgb_to_grayscale`."""
    luminance = jnp.trunc(image @ jnp.array(_GRAY, jnp.float32))
    return jnp.broadcast_to(luminance[..., None], image.shape)


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with black, as `torchvision...adjust_brightness`."""
    return blend(image, jnp.zeros_like(image), factor)


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the mean luminance, as `torchvision...adjust_contrast`."""
    return blend(image, jnp.broadcast_to(gray(image).mean(), image.shape), factor)


def saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the luminance, as `torchvision...adjust_saturation`."""
    return blend(image, gray(image), factor)


def hue(image: jax.Array, shift: jax.Array) -> jax.Array:
    """Rotates the hue by `shift` turns, from -0.5 to 0.5, as `torchvision...adjust_hue`."""
    high, low = image.max(-1), image.min(-1)
    chroma = high - low
    distance = (high[..., None] - image) / jnp.where(chroma == 0, 1.0, chroma)[..., None]
    red, green, blue = (distance[..., channel] for channel in range(3))
    sector = jnp.where(
        image[..., 0] == high, blue - green, jnp.where(image[..., 1] == high, 2 + red - blue, 4 + green - red)
    )
    turned = (sector / 6 + shift) % 1.0 * 6
    # Each channel is high where the hue is within a sixth of it, low where it is opposite, and linear in between.
    offsets = jnp.array([[[0.0, 2.0, 4.0]]], jnp.float32)
    away = jnp.abs((turned[..., None] - offsets + 3) % 6.0 - 3)
    whole = low[..., None] + chroma[..., None] * jnp.clip(2 - away, 0, 1)
    return jnp.floor(whole * (255.999 / 255))  # torch's conversion from 0..1


_JITTER: tuple[Callable[[jax.Array, jax.Array], jax.Array], ...] = (brightness, contrast, saturation, hue)


def jitter(images: jax.Array, draws: jax.Array, order: jax.Array, strengths: Sequence[float]) -> jax.Array:
    """Changes brightness, contrast, saturation and hue, as `torchvision.transforms.ColorJitter`.

    The order of the four is one for the batch, not one for each image, which would take four times as long.

    Args:
      images: [n, height, width, 3].
      draws: uniform in -1..1, [n, 4].
      order: int [4], a permutation.
      strengths: of the four: factors are 1 - strength to 1 + strength, at least 0; hue shifts -strength to strength.
    """

    def branch(number: int) -> Callable[[jax.Array], jax.Array]:
        strength = strengths[number]
        if not strength:
            return lambda images: images
        amounts = strength * draws[:, number]
        if _JITTER[number] is not hue:
            # Uniform from max(0, 1 - strength), as torchvision has it.
            low = max(0.0, 1 - strength)
            amounts = low + (draws[:, number] + 1) / 2 * (1 + strength - low)
        return lambda images: jax.vmap(_JITTER[number])(images, amounts)

    branches = [branch(number) for number in range(len(_JITTER))]
    for place in range(len(_JITTER)):
        images = jax.lax.switch(order[place], branches, images)
    return images


def blur(images: jax.Array, sigmas: jax.Array) -> jax.Array:
    """Blurs with Gaussians, as `torchvision...gaussian_blur` with a kernel of 2 * `RADIUS` + 1 pixels.

    Args:
      images: [n, height, width, 3]; sides of at least 2.
      sigmas: [n], in pixels.
    """
    radius = min(RADIUS, *(side - 1 for side in images.shape[1:3]))  # for the reflected border
    taps = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    kernel = jnp.exp(-0.5 * jnp.square(taps[None] / sigmas[:, None]))
    kernel = kernel / kernel.sum(1, keepdims=True)
    for axis in (1, 2):
        edge = [(radius, radius) if place == axis else (0, 0) for place in range(4)]
        padded, side = jnp.pad(images, edge, mode="reflect"), images.shape[axis]
        terms = (
            jax.lax.slice_in_dim(padded, tap, tap + side, axis=axis) * kernel[:, tap, None, None, None]
            for tap in range(2 * radius + 1)
        )
        images = sum(terms, jnp.zeros((), jnp.float32))
    return jnp.round(images)
