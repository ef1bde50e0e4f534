"""Batch normalisation fused with the residual addition and ReLU that follow it, for training and evaluation.

Arrays are [..., channels]; every axis but the last is reduced.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from sft_jax.ops.collectives import all_mean

EPSILON = 1e-5  # torch's default


def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    near: jax.Array | None = None,
    residual: jax.Array | None = None,
    relu: bool = False,
    axis_name: str | None = None,
    epsilon: float = EPSILON,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises with batch statistics, then optionally adds `residual` and applies ReLU.

    The hand-written backward pass saves only x and y, and makes one pass over each.

    Args:
      x: [..., channels].
      scale: [channels] float32 (gamma).
      bias: [channels] float32 (beta).
      near: [channels] float32, values near the mean, equal on all devices, such as the running mean; with them an
        accelerator needs one pass over x for the statistics instead of two.
      residual: of x's shape and dtype, added before the ReLU.
      relu: whether to apply ReLU.
      axis_name: mapped axis over which the statistics are averaged, so that the step does not depend on the number of
        devices. The shards must have equal size.
      epsilon: added to the variance.

    Returns:
      y of x's shape and dtype; mean and biased variance (divided by the count), [channels] float32. No gradient flows
      through the returned statistics.
    """
    y, mean, variance = _batch_norm(x, scale, bias, near, residual, relu, axis_name, epsilon)
    return y, lax.stop_gradient(mean), lax.stop_gradient(variance)


def normalize(
    x: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    residual: jax.Array | None = None,
    relu: bool = False,
    epsilon: float = EPSILON,
) -> jax.Array:
    """Applies `batch_norm` with given statistics [channels], as in evaluation. Returns y of x's shape and dtype."""
    factor = scale * _inverse_deviation(variance, epsilon)
    y = _affine(x, factor, bias - mean * factor)
    if residual is not None:
        y = y + residual
    return jax.nn.relu(y) if relu else y


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _batch_norm(x, scale, bias, near, residual, relu, axis_name, epsilon):
    return _forward(x, scale, bias, near, residual, relu, axis_name, epsilon)[0]


def _two_passes(wide, axis_name):
    """Returns mean and variance, as torch does: E[x^2] - E[x]^2 cancels catastrophically if the mean is large."""
    mean = _mean(wide, axis_name)
    return mean, _mean(jnp.square(wide - _channels(mean, wide)), axis_name)


def _one_pass(wide, near, axis_name):
    """Returns mean and variance with one pass over x and one sum over devices.

    E[(x - near)^2] - E[x - near]^2 cancels only if `near` is much further from the mean than the deviation.
    """
    from_near = wide - _channels(near, wide)
    axes = tuple(range(wide.ndim - 1))
    distance, square = all_mean((from_near.mean(axes), jnp.square(from_near).mean(axes)), axis_name)
    return near + distance, jnp.maximum(square - jnp.square(distance), 0)


def _forward(x, scale, bias, near, residual, relu, axis_name, epsilon):
    wide = x.astype(scale.dtype)
    if near is None:
        mean, variance = _two_passes(wide, axis_name)
    else:
        # Accelerators are bound by their memory's bandwidth. On CPUs the second pass costs little, and keeps the bits.
        mean, variance = lax.platform_dependent(
            wide,
            near,
            cpu=lambda wide, near: _two_passes(wide, axis_name),
            default=lambda wide, near: _one_pass(wide, near, axis_name),
        )
    y = normalize(x, mean, variance, scale, bias, residual=residual, relu=relu, epsilon=epsilon)
    return (y, mean, variance), (x, scale, mean, variance, y if relu else None, near is None, residual is not None)


def _backward(relu, axis_name, epsilon, saved, cotangents):
    x, scale, mean, variance, y, is_far, has_residual = saved
    dy = cotangents[0]
    if relu:
        dy = jnp.where(y > 0, dy, jnp.zeros((), dy.dtype))
    wide, wide_dy = x.astype(scale.dtype), dy.astype(scale.dtype)
    axes = tuple(range(x.ndim - 1))
    inverse = _inverse_deviation(variance, epsilon)
    centred = wide - _channels(mean, x)
    d_bias = wide_dy.sum(axes)
    d_scale = (wide_dy * centred).sum(axes) * inverse
    # dx = scale / deviation * (dy - mean(dy) - normalised x * mean(dy * normalised x)), means over all devices
    count = x.size // x.shape[-1]
    mean_dy, mean_dy_x = all_mean((d_bias / count, d_scale / count), axis_name)
    factor = scale * inverse
    dx = _channels(factor, x) * (wide_dy - _channels(mean_dy, x) - centred * _channels(inverse * mean_dy_x, x))
    return dx.astype(x.dtype), d_scale, d_bias, None if is_far else jnp.zeros_like(mean), dy if has_residual else None


_batch_norm.defvjp(_forward, _backward)


def _mean(x, axis_name):
    return all_mean(x.mean(tuple(range(x.ndim - 1))), axis_name)


def _inverse_deviation(variance, epsilon):
    return lax.rsqrt(variance + jnp.asarray(epsilon, variance.dtype))


def _affine(x, factor, offset):
    wide = x.astype(factor.dtype)
    return (wide * _channels(factor, x) + _channels(offset, x)).astype(x.dtype)


def _channels(values, x):
    return jnp.expand_dims(values, tuple(range(x.ndim - 1)))
