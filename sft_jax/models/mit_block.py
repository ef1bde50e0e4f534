"""The block of Mix Transformers, and its layers. Epsilons are transformers', see `mit.py`."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sft_jax import ops
from sft_jax.models.convnext_block import DepthwiseConv, Patches
from sft_jax.models.layers import Conv2d, conv_images
from sft_jax.models.swin_block import scaled
from sft_jax.models.transformer import Dense, LayerNorm, normalised

EPSILON = 1e-5
EXPANSION = 4


class OverlapPatches(nnx.Module):
    """A convolution whose patches overlap, and layer normalisation."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, *, dtype, rngs):
        self.proj = BiasedConv(inputs, outputs, size, stride=stride, padding=size // 2, dtype=dtype, rngs=rngs)
        self.layer_norm = LayerNorm(outputs, epsilon=EPSILON)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [batch, height, width, in] to [batch, ceil(height / stride), ceil(width / stride), out]."""
        bias = self.proj.bias[...]
        y = conv_images(self.proj, x).astype(bias.dtype)
        return normalised(self.layer_norm, y + bias[None, None, None])


class BiasedConv(Conv2d):
    """`torch.nn.Conv2d` with its bias [out], which `OverlapPatches` adds."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int, padding: int, dtype, rngs):
        super().__init__(inputs, outputs, size, stride=stride, padding=padding, dtype=dtype, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(outputs))


class ReducedAttention(nnx.Module):
    """Self-attention of all positions to squares of them, each reduced to one key and value."""

    def __init__(self, channels: int, heads: int, reduction: int, *, dtype, rngs):
        dense = functools.partial(Dense, channels, channels, dtype=dtype, rngs=rngs)
        self.query, self.key, self.value, self.output = dense(), dense(), dense(), dense()
        self.sr = Patches(channels, channels, reduction, dtype=dtype, rngs=rngs) if reduction > 1 else None
        self.layer_norm = LayerNorm(channels, epsilon=EPSILON) if reduction > 1 else None
        self.heads = heads

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [batch, height, width, channels], normalised, to the same shape."""
        batch, channels, reduced = x.shape[0], x.shape[-1], x
        if self.sr is not None:
            reduced = normalised(self.layer_norm, self.sr(x))
        q, k, v = (
            layer(source.reshape(-1, channels))
            for layer, source in ((self.query, x), (self.key, reduced), (self.value, reduced))
        )
        return self.output(ops.attention(q, k, v, batch, self.heads)).reshape(x.shape)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); between the layers of the MLP is a depthwise convolution."""

    def __init__(self, channels: int, heads: int, reduction: int, *, dtype, rngs):
        settings: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        hidden = EXPANSION * channels
        self.layer_norm_1 = LayerNorm(channels, epsilon=EPSILON)
        self.attention = ReducedAttention(channels, heads, reduction, **settings)
        self.layer_norm_2 = LayerNorm(channels, epsilon=EPSILON)
        self.mlp = nnx.Dict(
            dense1=Dense(channels, hidden, **settings),
            dwconv=DepthwiseConv(hidden, 3, **settings),
            dense2=Dense(hidden, channels, **settings),
        )

    def __call__(self, x: jax.Array, factors: Sequence[jax.Array | None]) -> jax.Array:
        """Maps x [batch, height, width, channels]; `factors` of the two branches are [batch], see `skip_factor`."""
        x = x + scaled(self.attention(normalised(self.layer_norm_1, x)).astype(x.dtype), factors[0])
        wide = self.mlp["dense1"](normalised(self.layer_norm_2, x).reshape(-1, x.shape[-1]))
        wide = self.mlp["dwconv"](wide.reshape(*x.shape[:3], -1)).reshape(wide.shape)
        branch = self.mlp["dense2"](ops.gelu(wide)).reshape(x.shape).astype(x.dtype)
        return x + scaled(branch, factors[1])
