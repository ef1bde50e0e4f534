"""Dropout (Srivastava et al., 2014), drawn for each example by its place in the global batch."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from sft_jax.ops.collectives import own_rows
from sft_jax.ops.scores import Drop, dropped

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
      attention: the rate of attention weights.
    """

    def __init__(self, rate: float, key: jax.Array | None, axis_name: str | None, *, attention: float = 0.0):
        self._dropped, self._of_attention = (round(each * LEVELS * (key is not None)) for each in (rate, attention))
        self._key, self._axis_name, self._used = key, axis_name, 0

    def __call__(self, x: jax.Array, examples: int) -> jax.Array:
        """Drops numbers of rows [examples * tokens, width]; every call draws anew."""
        if not self._dropped:
            return x
        kept = self._bytes(self._next(), x.shape, examples) >= self._dropped
        return dropped(x, kept, LEVELS / (LEVELS - self._dropped))

    def of_attention(self, examples: int) -> Drop | None:
        """Returns what drops attention weights [examples * heads, ...]; every call draws anew. None drops nothing."""
        if not self._of_attention:
            return None
        key, at_least = self._next(), self._of_attention

        def kept(shape: tuple[int, ...], part: int | jax.Array) -> jax.Array:
            return self._bytes(jax.random.fold_in(key, part), shape, examples) >= at_least

        return Drop(kept, LEVELS / (LEVELS - at_least))

    def _next(self) -> jax.Array:
        assert self._key is not None
        self._used += 1
        return jax.random.fold_in(self._key, self._used - 1)

    def _bytes(self, key: jax.Array, shape: tuple[int, ...], examples: int) -> jax.Array:
        """Draws uint8 of `shape`, whose first axis is the examples or consists of as many equal parts."""
        keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(own_rows(jnp.arange, examples, self._axis_name))
        size = math.prod(shape) // examples
        words = jax.vmap(lambda key: jax.random.bits(key, (-(-size // 4),), jnp.uint32))(keys)
        # jax.random.bits of bytes takes five times as long (jax 0.10.2, CPU).
        return lax.bitcast_convert_type(words, jnp.uint8).reshape(examples, -1)[:, :size].reshape(shape)


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
