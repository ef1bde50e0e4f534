"""Dropout (Srivastava et al., 2014), drawn for each example by its place in the global batch."""

import jax
import jax.numpy as jnp
from jax import lax

from sft_jax.ops.collectives import own_rows

# A byte decides about a number: drawing 32 bits instead takes four times as long.
LEVELS = 256


class Dropout:
    """Drops numbers at a rate, rounded to a 256th, and scales the others so that the mean stays.

    What is dropped of an example depends on its place in the global batch alone, so that any number of devices gives
    the same as one.

    Args:
      rate: from 0 to 1; 0 changes nothing.
      key: of the update; None drops nothing.
      axis_name: the mapped axis of devices, if there is one.
    """

    def __init__(self, rate: float, key: jax.Array | None, axis_name: str | None):
        self._dropped = round(rate * LEVELS) if key is not None else 0
        self._key, self._axis_name, self._used = key, axis_name, 0

    def __call__(self, x: jax.Array, examples: int) -> jax.Array:
        """Drops numbers of rows [examples * tokens, width]; every call draws anew."""
        if not self._dropped:
            return x
        assert self._key is not None
        own = jax.random.fold_in(self._key, self._used)
        self._used += 1
        keys = jax.vmap(lambda place: jax.random.fold_in(own, place))(own_rows(jnp.arange, examples, self._axis_name))
        size = x.size // examples
        words = jax.vmap(lambda key: jax.random.bits(key, (-(-size // 4),), jnp.uint32))(keys)
        # jax.random.bits of bytes takes five times as long (jax 0.10.2, CPU).
        bits = lax.bitcast_convert_type(words, jnp.uint8).reshape(examples, -1)[:, :size].reshape(x.shape)
        scale = jnp.asarray(LEVELS / (LEVELS - self._dropped), x.dtype)
        return jnp.where(bits >= self._dropped, x * scale, jnp.zeros((), x.dtype))


def dropout(
    x: jax.Array, key: jax.Array | None, rate: float, axis_name: str | None, *, channels: bool = False
) -> jax.Array:
    """Sets elements of x [batch, ..., width] to 0 with probability `rate` and divides the others by 1 - `rate`.

    Without a key it is the identity. The draws of an image do not depend on the number of devices of `axis_name`. With
    `channels` all elements of a channel of an image are set to 0, or none (`torch.nn.Dropout2d`).
    """
    if key is None:
        return x
    shape = (*[1] * (x.ndim - 2), x.shape[-1]) if channels else x.shape[1:]
    keys = own_rows(lambda total: jax.random.split(key, total), len(x), axis_name)
    kept = jax.vmap(lambda own: jax.random.bernoulli(own, 1 - rate, shape))(keys)
    return jnp.where(kept, x / (1 - rate), 0)
