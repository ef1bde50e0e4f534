"""Self-attention of long texts without the scores of all pairs of tokens at once.

The results are those of `attention.self_attention`, whose mask this one is. Queries, keys and values are
[batch * heads, tokens, d]. JAX derives the backward passes.

Forward and backward pass of two texts with 12 heads of 64 channels, in processor time and temporary memory (float32,
CPU, jax 0.10.2), against `attention.self_attention`:

| tokens | window | self_attention | here |
| --- | --- | --- | --- |
| 256 | 64 | 32 ms, 26 MB | 35 ms, 26 MB |
| 320 | 64 | 75 ms, 38 MB | 41 ms, 32 MB |
| 1,024 | 64 | 727 ms, 318 MB | 197 ms, 102 MB |
| 2,100 | | 3.2 s, 1,273 MB | 4.3 s, 494 MB |
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from sft_jax.ops.precision import wide
from sft_jax.ops.scores import Drop, softmax_of_seen

# The most tokens of a text whose scores are computed at once, and the queries of a part of those of longer ones.
WHOLE, PART = 2048, 512
# For texts of more windows blocks are faster, see above.
WINDOWS = 4


def is_long(tokens: int, window: int | None) -> bool:
    """Returns whether texts are so long that these functions are better; False for a symbolic number of tokens."""
    return isinstance(tokens, int) and tokens > (WHOLE if window is None else WINDOWS * window)


def long_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, window: int | None, drop: Drop | None = None
) -> jax.Array:
    """Computes attention to at most `window` tokens before and after each, or to all for None."""
    return _in_parts(q, k, v, mask, drop) if window is None else _in_blocks(q, k, v, mask, window, drop)


def _in_blocks(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, window: int, drop: Drop | None) -> jax.Array:
    """Computes attention within a window: blocks of `window` queries see their own block and the two beside it."""
    count, tokens, d = q.shape
    blocks = -(-tokens // window)
    end = blocks * window - tokens
    queries = jnp.pad(q, ((0, 0), (0, end), (0, 0))).reshape(count, blocks, window, d)
    keys, values = (_beside(jnp.pad(x, ((0, 0), (window, end + window), (0, 0))), blocks, window) for x in (k, v))
    seen = _beside(jnp.pad(mask, ((0, 0), (window, end + window)))[..., None], blocks, window)[..., 0]
    places = jnp.arange(3 * window)[None] - jnp.arange(window)[:, None]  # of keys, from the first one in the window
    near = (places >= 0) & (places <= 2 * window)
    seen = seen[:, None, :, None, :] & near[None, None, None]
    mixed = _attended(queries, keys, values, seen, drop)
    # Padding may see no token, and then gets the mean of all, as from the softmax of equal scores.
    sees = jnp.broadcast_to(seen.any(-1), (len(seen), count // len(seen), blocks, window)).reshape(*mixed.shape[:3], 1)
    mean = v.mean(1, dtype=wide(v)).astype(v.dtype)[:, None, None]
    return jnp.where(sees, mixed, mean).reshape(count, blocks * window, d)[:, :tokens]


def _beside(x: jax.Array, blocks: int, window: int) -> jax.Array:
    """Maps tokens [n, (blocks + 2) * window, d] to those of each block but the ends' and of the two beside it."""
    parts = x.reshape(x.shape[0], blocks + 2, window, x.shape[-1])
    return jnp.concatenate([parts[:, :-2], parts[:, 1:-1], parts[:, 2:]], axis=2)


def _in_parts(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, drop: Drop | None) -> jax.Array:
    """Computes attention to all tokens for `PART` queries at a time; the backward pass computes their scores again."""
    count, tokens, d = q.shape
    parts = -(-tokens // PART)
    queries = jnp.pad(q, ((0, 0), (0, parts * PART - tokens), (0, 0))).reshape(count, parts, PART, d)

    @jax.checkpoint
    def attended(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        own, number = part
        return _attended(own[:, None], k[:, None], v[:, None], mask[:, None, None, None], drop, number)[:, 0]

    mixed = lax.map(attended, (queries.swapaxes(0, 1), jnp.arange(parts))).swapaxes(0, 1)
    return mixed.reshape(count, parts * PART, d)[:, :tokens]


def _attended(
    q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array, drop: Drop | None, part: int | jax.Array = 0
) -> jax.Array:
    """Computes attention of queries [n, blocks, queries, d] to keys and values [n, blocks, keys, d].

    seen is bool [batch, 1, blocks or 1, queries or 1, keys], for n = batch * heads; `part` is the number of these
    queries' part.
    """
    product = functools.partial(lax.dot_general, preferred_element_type=wide(q))
    scores = product(q, k, (((3,), (3,)), ((0, 1), (0, 1)))) * q.shape[-1] ** -0.5
    weights = softmax_of_seen(scores, seen).astype(q.dtype)
    if drop is not None:
        weights = drop(weights, part)
    return product(weights, v, (((3,), (2,)), ((0, 1), (0, 1)))).astype(q.dtype)
