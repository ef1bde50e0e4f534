"""What attention of short and of long texts computes alike."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Drop:
    """Dropout of the weights with which tokens attend to others.

    Attributes:
      kept: draws which are kept: maps a shape [batch * heads, ...], and the number of a part of the queries that is
        computed by itself, to bool of this shape.
      scale: what they are multiplied by.
    """

    kept: Callable[[tuple[int, ...], int | jax.Array], jax.Array]
    scale: float

    def __call__(self, weights: jax.Array, part: int | jax.Array = 0) -> jax.Array:
        """Returns weights [batch * heads, ...] with some of them 0."""
        return dropped(weights, self.kept(weights.shape, part), self.scale)


def dropped(values: jax.Array, kept: jax.Array, scale: float) -> jax.Array:
    """Returns `values` times `scale` where they are `kept`, and 0 elsewhere."""
    return jnp.where(kept, values * jnp.asarray(scale, values.dtype), jnp.zeros((), values.dtype))


def softmax_of_seen(scores: jax.Array, seen: jax.Array | None) -> jax.Array:
    """Computes the softmax of scores [batch * heads, ..., keys] over the keys that are seen, None for all.

    seen is bool [batch or 1, 1, ..., keys], of the scores' shape or 1 in between. A query that sees none has the same
    weight for all, and no NaN.
    """
    if seen is not None:
        by_example = scores.reshape(seen.shape[0], -1, *scores.shape[1:])
        scores = jnp.where(seen, by_example, jnp.finfo(scores.dtype).min).reshape(scores.shape)
    return jax.nn.softmax(scores)
