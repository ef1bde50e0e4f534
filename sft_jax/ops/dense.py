"""Linear layers, layer normalisation and GELU of transformers, on rows [rows, channels]."""

import jax
import jax.numpy as jnp
from jax import lax


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Computes x kernel + bias [rows, out], in x's dtype, for x [rows, in], kernel [in, out] and bias [out]."""
    y = jnp.dot(x, kernel.astype(x.dtype), preferred_element_type=bias.dtype)
    return (y + bias[None]).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float) -> jax.Array:
    """Normalises rows x [rows, channels] as `torch.nn.LayerNorm`, in the dtype of `scale`, which it returns."""
    wide = x.astype(scale.dtype)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * lax.rsqrt(variance + jnp.asarray(epsilon, variance.dtype)) * scale[None] + bias[None]


def gelu(x: jax.Array) -> jax.Array:
    """Computes x Phi(x), as `torch.nn.GELU()`."""
    return jax.nn.gelu(x, approximate=False)
