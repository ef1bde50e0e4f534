"""Multi-head self-attention of transformers."""

import jax
import jax.numpy as jnp
from jax import lax


def self_attention(qkv: jax.Array, tokens: int, heads: int) -> jax.Array:
    """Computes softmax(q k^T / sqrt(d)) v for every image and head, as torch's scaled_dot_product_attention.

    Args:
      qkv: rows [batch * tokens, 3 * heads * d]: queries, keys and values of all heads, in this order.
      tokens: number of tokens of an image.
      heads: number of heads.

    Returns:
      rows [batch * tokens, heads * d] of the same dtype.
    """
    rows, width = qkv.shape
    batch, d = rows // tokens, width // (3 * heads)
    split = qkv.reshape(batch, tokens, 3, heads, d).transpose(2, 0, 3, 1, 4).reshape(3, batch * heads, tokens, d)
    q, k, v = lax.optimization_barrier(split)
    scores = _product(q, k, 2, 2) * d**-0.5
    weights = jax.nn.softmax(scores).astype(qkv.dtype)
    mixed = _product(weights, v, 2, 1).astype(qkv.dtype)
    return mixed.reshape(batch, heads, tokens, d).transpose(0, 2, 1, 3).reshape(rows, heads * d)


def _product(x: jax.Array, y: jax.Array, x_axis: int, y_axis: int) -> jax.Array:
    wide = x.dtype if x.dtype.itemsize >= 4 else jnp.float32
    return lax.dot_general(x, y, (((x_axis,), (y_axis,)), ((0,), (0,))), preferred_element_type=wide)
