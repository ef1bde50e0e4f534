"""The block of Swin transformers V2: cosine attention, biases that a small network computes, and norms after branches.

The attribute names are those of timm's `SwinTransformerV2Block`. Activations are [batch, height, width, channels].
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sft_jax import ops
from sft_jax.models.swin_block import EPSILON, EXPANSION, WindowAttention, scaled, squares
from sft_jax.models.transformer import Dense, LayerNorm, normalised

HIDDEN = 512  # channels of the network that computes biases
LARGEST_BIAS = 16
LARGEST_SCALE = math.log(100)  # of the logarithm of cosines' factor
SMALLEST_NORM = 1e-12  # by which vectors are divided


def relative_coordinates(window: int) -> np.ndarray:
    """Returns the offsets between two positions of a window on a logarithmic scale: float32 [2 w - 1, 2 w - 1, 2]."""
    offset = np.arange(1 - window, window, dtype=np.float32) / np.float32(window - 1) * np.float32(8)
    logarithm = np.sign(offset) * np.log2(np.abs(offset) + 1) / np.float32(3)
    return np.stack(np.meshgrid(logarithm, logarithm, indexing="ij"), -1)


class CosineAttention(WindowAttention):
    """Attention within windows by the cosines between queries and keys, which have no biases of their own."""

    def __init__(self, channels: int, heads: int, window: int, shifted: bool, *, dtype, rngs):
        self.heads, self.window, self.shifted = heads, window, shifted
        self.qkv = Dense(channels, 3 * channels, dtype=dtype, rngs=rngs)
        self.proj = Dense(channels, channels, dtype=dtype, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.full((heads, 1, 1), math.log(10)))
        wide = dtype if jnp.dtype(dtype).itemsize >= 4 else jnp.float32
        last = Dense(HIDDEN, heads, bias=False, dtype=wide, rngs=rngs)
        self.cpb_mlp: Any = nnx.List([Dense(2, HIDDEN, dtype=wide, rngs=rngs), None, last])  # None for ReLU, as in timm

    def project(self, rows: jax.Array) -> jax.Array:
        """Maps rows [rows, channels] to queries, keys and values [rows, 3 * channels], so that products are cosines."""
        assert self.qkv.bias is not None
        query, _, value = jnp.split(self.qkv.bias[...], 3)
        bias = jnp.concatenate([query, jnp.zeros_like(query), value])
        qkv = ops.dense(rows.astype(self.qkv.dtype), self.qkv.kernel[...], bias)
        d = qkv.shape[-1] // (3 * self.heads)
        parts = qkv.reshape(-1, 3, self.heads, d).astype(bias.dtype)
        logarithm = self.logit_scale[...][:, 0]
        scale = jnp.exp(jnp.where(logarithm > LARGEST_SCALE, jnp.asarray(LARGEST_SCALE, bias.dtype), logarithm))
        # `ops.self_attention` divides by the root.
        queries = _unit(parts[:, 0]) * (scale * d**0.5)[None]
        found = jnp.stack([queries, _unit(parts[:, 1]), parts[:, 2]], 1)
        return found.reshape(qkv.shape).astype(qkv.dtype)

    def offset_biases(self) -> jax.Array:
        """Returns the bias for each offset, [(2 window - 1)^2, heads]."""
        first, _, last = self.cpb_mlp
        offsets = jnp.asarray(relative_coordinates(self.window).reshape(-1, 2), first.dtype)
        return LARGEST_BIAS * jax.nn.sigmoid(last(jax.nn.relu(first(offsets))))


class BlockV2(nnx.Module):
    """x + norm(attention(x)), then x + norm(mlp(x))."""

    def __init__(self, channels: int, heads: int, window: int, shifted: bool, *, dtype, rngs):
        hidden = EXPANSION * channels
        self.attn = CosineAttention(channels, heads, window, shifted, dtype=dtype, rngs=rngs)
        self.norm1 = LayerNorm(channels, epsilon=EPSILON)
        self.mlp = nnx.Dict(
            fc1=Dense(channels, hidden, dtype=dtype, rngs=rngs), fc2=Dense(hidden, channels, dtype=dtype, rngs=rngs)
        )
        self.norm2 = LayerNorm(channels, epsilon=EPSILON)

    def __call__(self, x: jax.Array, factors: Sequence[jax.Array | None]) -> jax.Array:
        """Maps x [batch, height, width, channels]; `factors` of the two branches are [batch], see `skip_factor`."""
        x = x + scaled(normalised(self.norm1, self.attn(x)).astype(x.dtype), factors[0])
        branch = self.mlp["fc2"](ops.gelu(self.mlp["fc1"](x.reshape(-1, x.shape[-1])))).reshape(x.shape)
        return x + scaled(normalised(self.norm2, branch).astype(x.dtype), factors[1])


class PatchMergingV2(nnx.Module):
    """Halves the map: the channels of four neighbours are mapped to twice those of one, and normalised."""

    def __init__(self, channels: int, *, dtype, rngs):
        self.reduction = Dense(4 * channels, 2 * channels, bias=False, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(2 * channels, epsilon=EPSILON)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [batch, height, width, channels] to [batch, ceil(height / 2), ceil(width / 2), 2 channels]."""
        neighbours = squares(x)
        rows = self.reduction(neighbours.reshape(-1, neighbours.shape[-1]))
        return normalised(self.norm, rows.reshape(*neighbours.shape[:3], -1)).astype(x.dtype)


def _unit(x: jax.Array) -> jax.Array:
    """Divides x by its norm over the last axis, as `torch.nn.functional.normalize`; the gradient at 0 is 0."""
    squared = jnp.square(x).sum(-1, keepdims=True)
    norm = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
    return x / jnp.where(norm > SMALLEST_NORM, norm, jnp.asarray(SMALLEST_NORM, norm.dtype))
