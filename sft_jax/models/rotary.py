"""Rotary position embeddings (Su et al., 2021, arXiv:2104.09864) of grids, as in DINOv3, and of texts."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TEMPERATURE = 100.0


class Rotation(NamedTuple):
    """Sines and cosines of the angles for queries, keys and values: each [tokens, 3, 1, d]."""

    sin: jax.Array
    cos: jax.Array


def periods(d: int) -> np.ndarray:
    """Returns the periods of the angles for heads of d channels, float32 [d / 4], for coordinates in -1..1."""
    return _powers(TEMPERATURE, (2 * np.arange(d // 4, dtype=np.float32) / (d // 2)).astype(np.float32))


def rotation(rows: int, columns: int, prefix: int, d: int, dtype: jax.typing.DTypeLike) -> Rotation:
    """Returns the rotation by the positions of patches, as `timm.layers.RotaryEmbeddingDinoV3`.

    Args:
      rows, columns: of the patches.
      prefix: number of tokens before them, which are not rotated.
      d: channels of a head: a quarter is rotated by the row and a quarter by the column, each with the channel half of
        them later.
      dtype: of the angles.
    """
    # Rounded to float32 where the reference rounds them.
    centres = [(2 * (np.arange(count, dtype=np.float32) + np.float32(0.5)) / count - 1) for count in (rows, columns)]
    grid = np.stack(np.meshgrid(*centres, indexing="ij"), -1).reshape(-1, 2, 1).astype(dtype)
    angles = (2 * np.pi * grid / periods(d).astype(dtype)).reshape(rows * columns, d // 2)
    return _rotation(np.concatenate([np.zeros((prefix, d // 2)), angles]), dtype, np)


def text_rotation(tokens: int, d: int, theta: float, dtype: jax.typing.DTypeLike) -> Rotation:
    """Returns the rotation by the places of tokens, as transformers' `ModernBertRotaryEmbedding`.

    Args:
      tokens: their number, which may be symbolic.
      d: channels of a head: the first half is rotated together with the second.
      theta: the slowest of the angles turns by nearly 1 / theta from a token to the next.
      dtype: of the sines and cosines.
    """
    # Rounded to float32 as in the reference, where it matters at the end of long texts.
    frequencies = np.float32(1) / _powers(theta, np.arange(0, d, 2, dtype=np.float32) / np.float32(d))
    angles = jnp.arange(tokens, dtype=jnp.float32)[:, None] * frequencies[None]
    return _rotation(angles.astype(dtype), dtype, jnp)


def _powers(base: float, exponents: np.ndarray) -> np.ndarray:
    """Returns powers rounded to float32; the last bit of float32's own is another on processors with AVX-512."""
    return np.power(base, exponents, dtype=np.float64).astype(np.float32)


def _rotation(angles: Any, dtype: jax.typing.DTypeLike, numeric: Any) -> Rotation:
    """Returns the rotation by angles [tokens, d / 2], computed with `numeric`: numpy or jax.numpy."""
    angles = numeric.concatenate([angles, angles], -1)[:, None]
    whole = numeric.stack([angles, angles, numeric.zeros_like(angles)], 1)  # values are not rotated
    return Rotation(jnp.asarray(numeric.sin(whole), dtype), jnp.asarray(numeric.cos(whole), dtype))


def rotated(qkv: jax.Array, tokens: int, heads: int, rotation: Rotation) -> jax.Array:
    """Rotates the queries and keys of rows [batch * tokens, 3 * heads * d]; returns the same shape and dtype."""
    parts = qkv.reshape(-1, tokens, 3, heads, qkv.shape[-1] // (3 * heads)).astype(rotation.sin.dtype)
    first, second = jnp.split(parts, 2, -1)
    turned = parts * rotation.cos[None] + jnp.concatenate([-second, first], -1) * rotation.sin[None]
    return turned.astype(qkv.dtype).reshape(qkv.shape)
