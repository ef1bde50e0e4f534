"""What attention of short and of long texts computes alike."""

import jax
import jax.numpy as jnp


def softmax_of_seen(scores: jax.Array, seen: jax.Array | None) -> jax.Array:
    """Computes the softmax of scores [batch * heads, ..., keys] over the keys that are seen, None for all.

    seen is bool [batch or 1, 1, ..., keys], of the scores' shape or 1 in between. A query that sees none has the same
    weight for all, and no NaN.
    """
    if seen is not None:
        by_example = scores.reshape(seen.shape[0], -1, *scores.shape[1:])
        scores = jnp.where(seen, by_example, jnp.finfo(scores.dtype).min).reshape(scores.shape)
    return jax.nn.softmax(scores)
