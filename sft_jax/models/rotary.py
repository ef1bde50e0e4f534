"""Rotary position embeddings (Su et al., 2021, arXiv:2104.09864) of two-dimensional grids, as in DINOv3."""

from typing import NamedTuple

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
    return np.float32(TEMPERATURE) ** (2 * np.arange(d // 4, dtype=np.float32) / (d // 2)).astype(np.float32)


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
    angles = np.concatenate([np.zeros((prefix, d // 2)), angles])
    angles = np.tile(angles, 2)[:, None]
    whole = np.stack([angles, angles, np.zeros_like(angles)], 1)  # values are not rotated
    return Rotation(jnp.asarray(np.sin(whole), dtype), jnp.asarray(np.cos(whole), dtype))


def rotated(qkv: jax.Array, tokens: int, heads: int, rotation: Rotation) -> jax.Array:
    """Rotates the queries and keys of rows [batch * tokens, 3 * heads * d]; returns the same shape and dtype."""
    parts = qkv.reshape(-1, tokens, 3, heads, qkv.shape[-1] // (3 * heads)).astype(rotation.sin.dtype)
    first, second = jnp.split(parts, 2, -1)
    turned = parts * rotation.cos[None] + jnp.concatenate([-second, first], -1) * rotation.sin[None]
    return turned.astype(qkv.dtype).reshape(qkv.shape)
