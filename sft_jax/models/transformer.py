"""Layers and blocks of transformers, on rows of tokens: activations are [batch * tokens, channels].

XLA's CPU backend multiplies such matrices twice as fast as [batch, tokens, channels] with the same matrix.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from sft_jax import ops

# Standard deviation of new kernels and position embeddings, as in timm and BERT.
DEVIATION = 0.02


class Dense(nnx.Module):
    """A linear layer within the network, `torch.nn.Linear`: kernel [in, out]; products of `dtype`."""

    def __init__(self, inputs: int, outputs: int, *, dtype, rngs):
        self.kernel = nnx.Param(DEVIATION * jax.random.normal(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps rows [rows, in] to [rows, out], of `dtype`."""
        return ops.dense(x.astype(self.dtype), self.kernel[...], self.bias[...])


class LayerNorm(nnx.Module):
    """`torch.nn.LayerNorm` with the epsilon of vision transformers, 1e-6; computed in float32 or wider."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises rows [rows, channels]."""
        return ops.layer_norm(x, self.scale[...], self.bias[...], epsilon=1e-6)


class LayerScale(nnx.Module):
    """A factor for each channel of a residual branch (Touvron et al., 2021, arXiv:2103.17239)."""

    def __init__(self, channels: int, initial: float):
        self.gamma = nnx.Param(jnp.full(channels, initial))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scales rows [rows, channels], in float32 or wider."""
        return x.astype(self.gamma[...].dtype) * self.gamma[...][None]


class PatchEmbedding(nnx.Module):
    """Cuts images into patches and embeds each: `torch.nn.Conv2d(3, channels, patch, stride=patch)`.

    kernel [patch, patch, 3, channels].
    """

    def __init__(self, patch: int, channels: int, *, dtype, rngs):
        shape, bound = (patch, patch, 3, channels), (patch * patch * 3) ** -0.5  # as torch draws it
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.dtype = dtype

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images [batch, height, width, 3] to rows [batch * patches, channels], float32 or wider."""
        patch, _, _, channels = self.kernel[...].shape
        batch, height, width, _ = images.shape
        rows = images.astype(self.dtype).reshape(batch, height // patch, patch, width // patch, patch, 3)
        rows = rows.transpose(0, 1, 3, 2, 4, 5).reshape(-1, patch * patch * 3)
        return ops.dense(rows, self.kernel[...].reshape(-1, channels), self.bias[...]).astype(self.bias[...].dtype)


def token(count: int, channels: int, *, rngs: nnx.Rngs) -> nnx.Param:
    """Draws `count` tokens or position embeddings [1, count, channels]."""
    return nnx.Param(DEVIATION * jax.random.normal(rngs.params(), (1, count, channels), jnp.float32))


class EncoderBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with LayerScale where a network has it.

    Subclasses have the layers under their reference's names: `layers()` returns them in the order of their use.
    """

    heads: int

    def layers(self) -> tuple[LayerNorm, Dense, Dense, LayerScale | None, LayerNorm, Dense, Dense, LayerScale | None]:
        """Returns norm, qkv and projection of attention, its scale; norm, two layers of the MLP, its scale."""
        raise NotImplementedError

    def __call__(self, x: jax.Array, tokens: int, factors: tuple[jax.Array | None, jax.Array | None]) -> jax.Array:
        """Maps rows x [batch * tokens, channels] to the same.

        Args:
          x: the residual stream, float32 or wider.
          tokens: number of tokens of an image.
          factors: of the two branches, [batch], see `survival`; None for 1.
        """
        norm1, qkv, project, scale1, norm2, expand, reduce, scale2 = self.layers()
        y = project(ops.self_attention(qkv(norm1(x)), tokens, self.heads))
        x = x + _branch(y, scale1, factors[0], tokens).astype(x.dtype)
        y = reduce(ops.gelu(expand(norm2(x))))
        return x + _branch(y, scale2, factors[1], tokens).astype(x.dtype)


def _branch(y: jax.Array, scale: LayerScale | None, factor: jax.Array | None, tokens: int) -> jax.Array:
    y = y if scale is None else scale(y)
    if factor is None:
        return y
    rows = y.reshape(-1, tokens, y.shape[-1]) * factor.astype(y.dtype)[:, None, None]
    return rows.reshape(y.shape)
