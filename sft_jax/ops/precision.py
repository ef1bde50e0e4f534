"""The precision of sums."""

import jax
import jax.numpy as jnp


def wide(x: jax.Array) -> jnp.dtype:
    """Returns the dtype of sums of x: its own, or float32 if that is narrower."""
    return x.dtype if x.dtype.itemsize >= 4 else jnp.dtype("float32")
