"""Max pooling."""

import jax
import jax.numpy as jnp
from jax import lax


def max_pool(x: jax.Array, *, window: int, stride: int, padding: int) -> jax.Array:
    """Max over square windows of `x` [batch, height, width, channels], padded with -inf as `torch.nn.MaxPool2d`."""
    pad = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), pad)
