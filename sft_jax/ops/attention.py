"""Multi-head attention of transformers."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from sft_jax.ops.long_attention import is_long, long_attention
from sft_jax.ops.precision import rounded_product, wide
from sft_jax.ops.scores import Drop, dropped, softmax_of_seen

# Divides the number of tokens that cuBLAS wants in bfloat16; otherwise XLA pads each operand of each product.
ALIGNED = 8


def self_attention(
    qkv: jax.Array,
    tokens: int,
    heads: int,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    window: int | None = None,
    drop: Drop | None = None,
) -> jax.Array:
    """Computes softmax(q k^T / sqrt(d) + bias) v for every example and head, as torch's scaled_dot_product_attention.

    On a CPU products of [batch * heads, tokens, d] are the fastest form. The backward pass keeps q, k, v and the
    softmax, and transposes before its products: for ViT-S/16 (batch 16, 224 px) forward and backward take 60 ms of
    processor time, 68 if jax derives them. Long texts go another way, see `long_attention.py`.

    Args:
      qkv: rows [batch * tokens, 3 * heads * d]: queries, keys and values of all heads, in this order.
      tokens: number of tokens of an example.
      heads: number of heads.
      bias: [groups, heads, tokens, tokens], added to the scores: the first to those of the first of every `groups`
        examples, and so on; None for none.
      mask: bool [batch, tokens], whether others attend to a token, which they do not to padding; None for all.
      window: the number of tokens before and after it to which a token attends; None for all.
      drop: dropout of the softmax; None for none.

    Returns:
      rows [batch * tokens, heads * d] of the same dtype.
    """
    if mask is not None and bias is None and is_long(tokens, window):
        q, k, v = _heads(qkv, tokens, heads)
        return _rows(long_attention(q, k, v, mask, window, drop), heads)
    if qkv.dtype.itemsize < 4 and bias is None and isinstance(tokens, int) and tokens % ALIGNED:
        return _padded(qkv, tokens, heads, mask, window, drop)
    return _at_once(qkv, bias, mask, tokens, heads, window, drop)


def _at_once(qkv, bias, mask, tokens, heads, window, drop):
    kept = drop and drop.kept((qkv.shape[0] // tokens * heads, tokens, tokens), 0)
    return _self_attention(qkv, bias, mask, kept, tokens, heads, window, drop and drop.scale)


def _padded(qkv, tokens, heads, mask, window, drop):
    """Computes `_at_once` with padding up to a multiple of `ALIGNED` tokens."""
    whole = -(-tokens // ALIGNED) * ALIGNED
    added = ((0, 0), (0, whole - tokens), (0, 0))
    rows = jnp.pad(qkv.reshape(-1, tokens, qkv.shape[-1]), added).reshape(-1, qkv.shape[-1])
    seen = jnp.ones((1, tokens), bool) if mask is None else mask
    mixed = _at_once(rows, None, jnp.pad(seen, added[:2]), whole, heads, window, drop)
    return mixed.reshape(-1, whole, mixed.shape[-1])[:, :tokens].reshape(-1, mixed.shape[-1])


def attention(q: jax.Array, k: jax.Array, v: jax.Array, batch: int, heads: int) -> jax.Array:
    """Computes softmax(q k^T / sqrt(d)) v as `self_attention`, for other tokens that are attended to than attend.

    Args:
      q: rows [batch * tokens, heads * d].
      k, v: rows [batch * others, heads * d].
      batch: number of examples.
      heads: number of heads.

    Returns:
      rows [batch * tokens, heads * d] of the same dtype.
    """

    def split(rows: jax.Array) -> jax.Array:
        own = rows.reshape(batch, -1, heads, rows.shape[-1] // heads).transpose(0, 2, 1, 3)
        return own.reshape(batch * heads, -1, own.shape[-1])

    queries, keys, values = split(q), split(k), split(v)
    weights = _softmax(queries, keys, None, None, None).astype(q.dtype)
    return _rows(_rounded(weights, values), heads)


def attention_weights(qkv: jax.Array, tokens: int, heads: int) -> jax.Array:
    """Returns the softmax of `self_attention` without a bias or mask: [batch, heads, tokens, tokens]."""
    q, k, _ = _heads(qkv, tokens, heads)
    return _softmax(q, k, None, None, None).reshape(-1, heads, tokens, tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _self_attention(qkv, bias, mask, kept, tokens, heads, window, scale):
    return _forward(qkv, bias, mask, kept, tokens, heads, window, scale)[0]


def _forward(qkv, bias, mask, kept, tokens, heads, window, scale):
    q, k, v = _heads(qkv, tokens, heads)
    weights = _softmax(q, k, bias, mask, window).astype(qkv.dtype)
    mixed = _rounded(weights if kept is None else dropped(weights, kept, scale), v)
    saved = q, k, v, weights, bias, kept
    return _rows(mixed, heads), saved


def _heads(qkv: jax.Array, tokens: int, heads: int) -> jax.Array:
    """Splits rows into queries, keys and values [3, batch * heads, tokens, d]."""
    rows, width = qkv.shape
    batch, d = rows // tokens, width // (3 * heads)
    split = qkv.reshape(batch, tokens, 3, heads, d).transpose(2, 0, 3, 1, 4).reshape(3, batch * heads, tokens, d)
    # Without it the transposes are fused into the products, which become slow.
    return lax.optimization_barrier(split)


def _rows(mixed: jax.Array, heads: int) -> jax.Array:
    """Maps [batch * heads, tokens, d] to rows [batch * tokens, heads * d]."""
    _, tokens, d = mixed.shape
    return mixed.reshape(-1, heads, tokens, d).transpose(0, 2, 1, 3).reshape(-1, heads * d)


def _softmax(
    q: jax.Array, k: jax.Array, bias: jax.Array | None, mask: jax.Array | None, window: int | None
) -> jax.Array:
    """Returns the softmax of the scores [batch * heads, tokens, tokens], float32 or wider."""
    scores = _product(q, k, 2, 2) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = (scores.reshape(-1, *bias.shape) + bias[None].astype(scores.dtype)).reshape(scores.shape)
    return softmax_of_seen(scores, _seen(q.shape[1], mask, window))


def _seen(tokens: int, mask: jax.Array | None, window: int | None) -> jax.Array | None:
    """Returns which tokens attend to which, bool [batch or 1, 1, tokens or 1, tokens]; None if all do to all."""
    seen = None if mask is None else mask[:, None, None, :]
    if window is None:
        return seen
    places = jnp.arange(tokens)
    near = (jnp.abs(places[:, None] - places[None]) <= window)[None, None]
    return near if seen is None else seen & near


def _backward(tokens, heads, window, scale, saved, dy):
    q, k, v, weights, bias, kept = saved
    batch, d = q.shape[0] // heads, q.shape[-1]
    dy = dy.reshape(batch, tokens, heads, d).transpose(0, 2, 1, 3).reshape(batch * heads, tokens, d)
    dy = lax.optimization_barrier(dy)
    d_weights, seen = _product(dy, v, 2, 2), weights
    if kept is not None:
        d_weights, seen = dropped(d_weights, kept, scale), dropped(weights, kept, scale)
    softmax = weights.astype(d_weights.dtype)
    d_scores = softmax * (d_weights - (d_weights * softmax).sum(-1, keepdims=True))
    d_bias = None if bias is None else d_scores.reshape(-1, *bias.shape).sum(0).astype(bias.dtype)
    d_scores = (d_scores * d**-0.5).astype(q.dtype)
    flipped, d_flipped, d_scores = lax.optimization_barrier(
        (seen.transpose(0, 2, 1), d_scores.transpose(0, 2, 1), d_scores)
    )
    parts = [_rounded(d_scores, k), _rounded(d_flipped, q), _rounded(flipped, dy)]
    split = lax.optimization_barrier(jnp.stack(parts))
    split = split.reshape(3, batch, heads, tokens, d).transpose(1, 3, 0, 2, 4)
    return split.reshape(batch * tokens, 3 * heads * d), d_bias, None, None


_self_attention.defvjp(_forward, _backward)


def _rounded(x: jax.Array, y: jax.Array) -> jax.Array:
    """Multiplies matrices [n, a, b] and [n, b, c], with results of their dtype."""
    return rounded_product(x, y, (((2,), (1,)), ((0,), (0,))))


def _product(x: jax.Array, y: jax.Array, x_axis: int, y_axis: int) -> jax.Array:
    """Multiplies matrices [n, ...] over an axis of each, with float32 results or wider."""
    return lax.dot_general(x, y, (((x_axis,), (y_axis,)), ((0,), (0,))), preferred_element_type=wide(x))
