"""TrivialAugmentWide, RandAugment and AugMix on the device; operations match torchvision's (v1 transforms, nearest).

Each image draws its own operation. Under `vmap` all operations are computed and one is selected, which suits GPUs and
costs a CPU about as much as the rest of the input pipeline at 32 px. Images are float32 with integer values in 0..255.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sft_jax.data import colour

BINS = 31  # magnitude bins
_OPERATIONS = 14
# torchvision's defaults of AugMix: the least and greatest of ten magnitudes, chains, and operations of the longest.
_MIX_SEVERITY, _MIX_BINS, _MIX_CHAINS, _MIX_DEPTH = 3, 10, 3, 3


def trivial_augment(pixels: jax.Array, key: jax.Array) -> jax.Array:
    """TrivialAugmentWide (Müller and Hutter, 2021, arXiv:2103.10158): one operation of random magnitude.

    Matches `torchvision.transforms.TrivialAugmentWide()` on one image [height, width, 3].
    """
    operation_key, bin_key, sign_key = jax.random.split(key, 3)
    operation = jax.random.randint(operation_key, (), 0, _OPERATIONS)
    level = jax.random.randint(bin_key, (), 0, BINS).astype(jnp.float32) / (BINS - 1)
    sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)
    magnitudes = {"shear": 0.99 * level, "translate": 32.0 * level, "rotate": 135.0 * level, "blend": 0.99 * level}
    return apply(pixels, operation, magnitudes, jnp.round(8 - 6 * level), 255 * (1 - level), sign)


def rand_augment(pixels: jax.Array, key: jax.Array, *, operations: int, magnitude: int) -> jax.Array:
    """RandAugment (Cubuk et al., 2020, arXiv:1909.13719): N random operations of one magnitude in 0..30.

    Matches `torchvision.transforms.RandAugment(operations, magnitude)` on one image [height, width, 3].
    """
    level = jnp.float32(magnitude / (BINS - 1))
    height, width, _ = pixels.shape
    magnitudes = {
        "shear": 0.3 * level,
        "translate": 150.0 / 331.0 * level * jnp.array([width, height], jnp.float32),
        "rotate": 30.0 * level,
        "blend": 0.9 * level,
    }
    for subkey in jax.random.split(key, operations):
        operation_key, sign_key = jax.random.split(subkey)
        operation = jax.random.randint(operation_key, (), 0, _OPERATIONS)
        sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)
        pixels = apply(pixels, operation, magnitudes, jnp.round(8 - 4 * level), 255 * (1 - level), sign)
    return pixels


def aug_mix(pixels: jax.Array, key: jax.Array) -> jax.Array:
    """AugMix (Hendrycks et al., 2020, arXiv:1912.02781): mixes the image with chains of operations on it.

    Matches `torchvision.transforms.AugMix()` on one image [height, width, 3].
    """
    own_key, weights_key, chains_key = jax.random.split(key, 3)
    own = jax.random.uniform(own_key)  # Dirichlet(1, 1)
    weights = (1 - own) * jax.random.dirichlet(weights_key, jnp.ones(_MIX_CHAINS))

    def add_chain(mixed: jax.Array, chain: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        weight, chain_key = chain
        depth_key, operations_key = jax.random.split(chain_key)
        depth = jax.random.randint(depth_key, (), 1, _MIX_DEPTH + 1)

        def extend(image: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            number, step_key = step
            return jnp.where(number < depth, _mixed_in(image, step_key), image), None

        steps = jnp.arange(_MIX_DEPTH), jax.random.split(operations_key, _MIX_DEPTH)
        return mixed + weight * jax.lax.scan(extend, pixels, steps)[0], None

    chains = weights, jax.random.split(chains_key, _MIX_CHAINS)
    return jnp.trunc(jax.lax.scan(add_chain, own * pixels, chains)[0])


def _mixed_in(image: jax.Array, key: jax.Array) -> jax.Array:
    """Applies one random operation of AugMix."""
    operation_key, bin_key, sign_key = jax.random.split(key, 3)
    operation = jax.random.randint(operation_key, (), 1, _OPERATIONS)  # not the identity
    bin_ = jax.random.randint(bin_key, (), 0, _MIX_SEVERITY).astype(jnp.float32)
    level = bin_ / (_MIX_BINS - 1)
    height, width, _ = image.shape
    magnitudes = {
        "shear": 0.3 * level,
        "translate": level * jnp.array([width, height], jnp.float32) / 3,
        "rotate": 30.0 * level,
        "blend": 0.9 * level,
    }
    sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)
    return apply(image, operation, magnitudes, 4 - jnp.round(4 * level), 255 * (1 - level), sign)


def apply(
    pixels: jax.Array, operation: jax.Array, magnitudes: dict, bits: jax.Array, threshold: jax.Array, sign: jax.Array
) -> jax.Array:
    """Applies one operation to one image [height, width, 3].

    Args:
      pixels: the image.
      operation: 0 identity, 1 and 2 shear along x and y, 3 and 4 translate, 5 rotate (degrees), 6 brightness, 7 colour,
        8 contrast, 9 sharpness, 10 posterize, 11 solarize, 12 autocontrast, 13 equalize.
      magnitudes: for "shear", "translate" (a scalar or one value per axis), "rotate" and "blend".
      bits: number of bits kept by posterize.
      threshold: threshold of solarize.
      sign: sign of the magnitude of operations 1 to 9.
    """
    shift = jnp.broadcast_to(jnp.trunc(magnitudes["translate"]), (2,)) * sign
    shear, blend = sign * magnitudes["shear"], 1 + sign * magnitudes["blend"]
    branches: list[Callable[[jax.Array], jax.Array]] = [
        lambda image: image,
        lambda image: _shear(image, shear, 0.0),
        lambda image: _shear(image, 0.0, shear),
        lambda image: _warp(image, lambda x, y: (x - shift[0], y)),
        lambda image: _warp(image, lambda x, y: (x, y - shift[1])),
        lambda image: rotate(image, jnp.deg2rad(sign * magnitudes["rotate"])),
        lambda image: colour.brightness(image, blend),
        lambda image: colour.saturation(image, blend),
        lambda image: colour.contrast(image, blend),
        lambda image: colour.blend(image, _blurred(image), blend),
        lambda image: _posterize(image, bits),
        lambda image: jnp.where(image >= threshold, 255 - image, image),
        _autocontrast,
        _equalize,
    ]
    return jax.lax.switch(operation, branches, pixels)


def _warp(image: jax.Array, source: Callable) -> jax.Array:
    """Samples pixel (x, y) of the result at `source`(x, y), nearest neighbour, black outside the image."""
    height, width, _ = image.shape
    x, y = jnp.meshgrid(jnp.arange(width, dtype=jnp.float32), jnp.arange(height, dtype=jnp.float32))
    columns, rows = (jnp.round(values).astype(jnp.int32) for values in source(x, y))
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    sampled = image[jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)]
    return jnp.where(inside[..., None], sampled, 0.0)


def _shear(image: jax.Array, along_x: jax.Array | float, along_y: jax.Array | float) -> jax.Array:
    # Around the upper left corner, as in the authors' code; pixel centres are at half-integers.
    return _warp(image, lambda x, y: (x + along_x * (y + 0.5), y + along_y * (x + 0.5)))


def rotate(image: jax.Array, angle: jax.Array) -> jax.Array:
    """Rotates counter-clockwise by `angle` in radians, as `torchvision...rotate`: nearest neighbour, black outside."""
    height, width, _ = image.shape
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    cosine, sine = jnp.cos(angle), jnp.sin(angle)

    def source(x, y):
        u, v = x - centre_x, y - centre_y
        return cosine * u - sine * v + centre_x, sine * u + cosine * v + centre_y

    return _warp(image, source)


def _blurred(image: jax.Array) -> jax.Array:
    """Smooths with a 3x3 kernel of ones and a centre weight of 5; border pixels are unchanged."""
    height, width, _ = image.shape
    if min(height, width) < 3:
        return image
    windows = [image[row : height - 2 + row, column : width - 2 + column] for row in range(3) for column in range(3)]
    inner = jnp.round((functools.reduce(jnp.add, windows) + 4 * windows[4]) / 13)
    return image.at[1:-1, 1:-1].set(inner)


def _posterize(image: jax.Array, bits: jax.Array) -> jax.Array:
    step = 2 ** (8 - bits)
    return jnp.floor(image / step) * step


def _autocontrast(image: jax.Array) -> jax.Array:
    low, high = image.min((0, 1), keepdims=True), image.max((0, 1), keepdims=True)
    flat = high == low
    stretched = (image - jnp.where(flat, 0.0, low)) * jnp.where(flat, 1.0, 255 / jnp.maximum(high - low, 1.0))
    return jnp.trunc(jnp.clip(stretched, 0, 255))


def _equalize(image: jax.Array) -> jax.Array:
    def channel(values: jax.Array) -> jax.Array:
        whole = values.astype(jnp.int32)
        counts = jnp.zeros(256, jnp.int32).at[whole].add(1)
        last = counts[255 - jnp.argmax(counts[::-1] > 0)]
        step = (whole.size - last) // 255
        table = (jnp.cumsum(counts) + step // 2) // jnp.maximum(step, 1)
        table = jnp.clip(jnp.concatenate([jnp.zeros(1, jnp.int32), table[:-1]]), 0, 255)
        return jnp.where(step == 0, values, table[whole].astype(jnp.float32))

    return jnp.stack([channel(image[..., index]) for index in range(3)], axis=-1)
