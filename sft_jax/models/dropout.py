"""Dropout (Srivastava et al., 2014), drawn for each example by its place in the global batch."""

import jax
import jax.numpy as jnp
from jax import lax

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
        first = 0 if self._axis_name is None else lax.axis_index(self._axis_name) * examples
        keys = jax.vmap(lambda place: jax.random.fold_in(own, place))(first + jnp.arange(examples))
        size = x.size // examples
        words = jax.vmap(lambda key: jax.random.bits(key, (-(-size // 4),), jnp.uint32))(keys)
        # jax.random.bits of bytes takes five times as long (jax 0.10.2, CPU).
        bits = lax.bitcast_convert_type(words, jnp.uint8).reshape(examples, -1)[:, :size].reshape(x.shape)
        scale = jnp.asarray(LEVELS / (LEVELS - self._dropped), x.dtype)
        return jnp.where(bits >= self._dropped, x * scale, jnp.zeros((), x.dtype))
