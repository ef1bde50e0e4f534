"""Batch normalisation, in training and in evaluation."""

import jax
import jax.numpy as jnp
from jax import lax


def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    residual: jax.Array | None = None,
    relu: bool = False,
    epsilon: float = 1e-5,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises by the statistics of the batch, then adds `residual` and applies ReLU where asked.

    Args:
      x: [..., channels]; every axis but the last is reduced.
      scale: [channels] float32 (gamma).
      bias: [channels] float32 (beta).
      residual: of x's shape and dtype, added before the ReLU.
      relu: whether to clip the result at zero.
      epsilon: added to the variance; torch's default.
      axis_name: a mapped axis over which the statistics are averaged, so that any number of devices computes the
        same step. The shards must be of equal size.

    Returns:
      y of x's shape and dtype; mean [channels] float32; variance [channels] float32, biased (divided by the count).
    """
    axes = tuple(range(x.ndim - 1))
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(axes)
    if axis_name is not None:
        mean = lax.pmean(mean, axis_name)
    variance = jnp.square(wide - jnp.expand_dims(mean, axes)).mean(axes)
    if axis_name is not None:
        variance = lax.pmean(variance, axis_name)
    return normalize(x, mean, variance, scale, bias, residual=residual, relu=relu, epsilon=epsilon), mean, variance


def normalize(
    x: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    residual: jax.Array | None = None,
    relu: bool = False,
    epsilon: float = 1e-5,
) -> jax.Array:
    """`batch_norm` with given statistics, each [channels], as in evaluation. Returns y of x's shape and dtype."""
    axes = tuple(range(x.ndim - 1))
    factor = scale * lax.rsqrt(variance + jnp.asarray(epsilon, variance.dtype))
    wide = x.astype(factor.dtype)
    y = wide * jnp.expand_dims(factor, axes) + jnp.expand_dims(bias - mean * factor, axes)
    y = y.astype(x.dtype)
    if residual is not None:
        y = y + residual
    return jax.nn.relu(y) if relu else y
