"""The precision of sums."""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def wide(x: jax.Array) -> jnp.dtype:
    """Returns the dtype of sums of x: its own, or float32 if that is narrower."""
    return x.dtype if x.dtype.itemsize >= 4 else jnp.dtype("float32")


def rounded_product(x: jax.Array, y: jax.Array, dimensions: lax.DotDimensionNumbers) -> jax.Array:
    """Computes `lax.dot_general`, summed in `wide` and rounded to the operands' dtype.

    On NVIDIA GPUs it is rounded where it is multiplied; XLA otherwise writes the sums, and reads them to round them.
    """
    if x.dtype == wide(x):
        return lax.dot_general(x, y, dimensions)

    def rounded_after(x: jax.Array, y: jax.Array) -> jax.Array:
        return lax.dot_general(x, y, dimensions, preferred_element_type=wide(x)).astype(x.dtype)

    within = functools.partial(lax.dot_general, dimension_numbers=dimensions)
    return lax.platform_dependent(x, y, cuda=within, default=rounded_after)
