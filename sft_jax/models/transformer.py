"""Layers and blocks of transformers, on rows of tokens: activations are [batch * tokens, channels].

XLA's CPU backend multiplies such matrices twice as fast as [batch, tokens, channels] with the same matrix.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from sft_jax import ops
from sft_jax.models.rotary import Rotation, rotated

# Standard deviation of new kernels and position embeddings, as in timm and BERT.
DEVIATION = 0.02


# Which of queries, keys and values have biases.
Biases = Literal["qkv", "qv", ""]


class Embedding(nnx.Module):
    """`torch.nn.Embedding`: embedding [kinds, channels]."""

    def __init__(self, kinds: int, channels: int, *, rngs: nnx.Rngs):
        self.embedding = nnx.Param(DEVIATION * jax.random.normal(rngs.params(), (kinds, channels), jnp.float32))

    def __call__(self, numbers: jax.Array) -> jax.Array:
        """Maps integers [...] to [..., channels]."""
        return self.embedding[...][numbers]


class Dense(nnx.Module):
    """A linear layer within the network, `torch.nn.Linear`: kernel [in, out]; products of `dtype`."""

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool = True, deviation: float = DEVIATION, dtype, rngs: nnx.Rngs
    ):
        self.kernel = nnx.Param(deviation * jax.random.normal(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps rows [rows, in] to [rows, out], of `dtype`."""
        return self.product(x, self.kernel[...])

    def product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Multiplies x with a kernel [in, out], and adds the bias."""
        return ops.dense(x.astype(self.dtype), kernel, None if self.bias is None else self.bias[...])


class LayerNorm(nnx.Module):
    """`torch.nn.LayerNorm`, by default with the epsilon of vision transformers; computed in float32 or wider."""

    def __init__(self, channels: int, *, epsilon: float = 1e-6, bias: bool = True):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels)) if bias else None
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises rows [rows, channels]."""
        bias = None if self.bias is None else self.bias[...]
        return ops.layer_norm(x, self.scale[...], bias, epsilon=self.epsilon)


def normalised(norm: Any, x: jax.Array) -> jax.Array:
    """Applies a `LayerNorm` to x [..., channels], in float32 or wider."""
    rows = x.reshape(-1, x.shape[-1]).astype(norm.scale[...].dtype)
    return norm(rows).reshape(x.shape)


def mean_of_tokens(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the means [batch, channels] of tokens x [batch, tokens, channels] that are in mask, [batch, tokens]."""
    weights = mask[..., None].astype(x.dtype)
    return (x * weights).sum(1) / jnp.maximum(weights.sum(1), 1)


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
    """x + attention(norm(x)), then x + mlp(norm(x)): `timm.models.vision_transformer.Block`.

    Args:
      channels: of a token; the MLP has four times as many.
      heads: number of attention heads.
      layer_scale: initial value of LayerScale on both branches; None for none.
      epsilon: of layer normalisation.
      biases: of queries, keys and values; "qv" for parameters `q_bias` and `v_bias` alone.
      dtype: of the operands of matrix products.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        layer_scale: float | None,
        *,
        epsilon: float = 1e-6,
        biases: Biases = "qkv",
        dtype,
        rngs,
    ):
        def dense(inputs: int, outputs: int, bias: bool = True) -> Dense:
            return Dense(inputs, outputs, bias=bias, dtype=dtype, rngs=rngs)

        self.heads = heads
        self.norm1 = LayerNorm(channels, epsilon=epsilon)
        self.attn: Any = nnx.Dict(qkv=dense(channels, 3 * channels, biases == "qkv"), proj=dense(channels, channels))
        if biases == "qv":
            self.attn["q_bias"], self.attn["v_bias"] = (nnx.Param(jnp.zeros(channels)) for _ in range(2))
        self.ls1 = None if layer_scale is None else LayerScale(channels, layer_scale)
        self.norm2 = LayerNorm(channels, epsilon=epsilon)
        self.mlp = nnx.Dict(fc1=dense(channels, 4 * channels), fc2=dense(4 * channels, channels))
        self.ls2 = None if layer_scale is None else LayerScale(channels, layer_scale)

    def __call__(
        self, x: jax.Array, tokens: int, factors: Sequence[jax.Array | None], rotation: Rotation | None = None
    ) -> jax.Array:
        """Maps rows x [batch * tokens, channels] to the same.

        Args:
          x: the residual stream, float32 or wider.
          tokens: number of tokens of an image.
          factors: of the two branches, each [batch] or None for 1, see `skip_factor`.
          rotation: by which queries and keys are rotated; None for none.
        """
        y = self.attn["proj"](ops.self_attention(self._rotated(x, tokens, rotation), tokens, self.heads))
        x = x + _branch(y, self.ls1, factors[0], tokens).astype(x.dtype)
        y = self.mlp["fc2"](ops.gelu(self.mlp["fc1"](self.norm2(x))))
        return x + _branch(y, self.ls2, factors[1], tokens).astype(x.dtype)

    def attention(self, x: jax.Array, tokens: int, rotation: Rotation | None = None) -> jax.Array:
        """Returns the attention weights for rows x, as above: [batch, heads, tokens, tokens]."""
        return ops.attention_weights(self._rotated(x, tokens, rotation), tokens, self.heads)

    def _rotated(self, x: jax.Array, tokens: int, rotation: Rotation | None) -> jax.Array:
        qkv = self._qkv(self.norm1(x))
        return qkv if rotation is None else rotated(qkv, tokens, self.heads, rotation)

    def _qkv(self, x: jax.Array) -> jax.Array:
        """Maps rows [rows, channels] to queries, keys and values [rows, 3 * channels]."""
        y = self.attn["qkv"](x)
        if not hasattr(self.attn, "q_bias"):  # `in` fails in flax 0.12.1
            return y
        query, value = self.attn["q_bias"][...], self.attn["v_bias"][...]
        return y + jnp.concatenate([query, jnp.zeros_like(query), value]).astype(y.dtype)[None]


def _branch(y: jax.Array, scale: LayerScale | None, factor: jax.Array | None, tokens: int) -> jax.Array:
    y = y if scale is None else scale(y)
    if factor is None:
        return y
    rows = y.reshape(-1, tokens, y.shape[-1]) * factor.astype(y.dtype)[:, None, None]
    return rows.reshape(y.shape)
