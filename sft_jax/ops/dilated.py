"""Convolution with a dilated kernel, whose taps are several pixels apart.

On CPUs XLA's is as slow as its other convolutions (see `conv.py`). A dilated convolution is a plain one of each of the
dilation**2 images that have every dilation-th row and column, and these are convolved together as one batch.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def conv_dilated(
    x: jax.Array, kernel: jax.Array, convolve: Callable[..., jax.Array], *, dilation: int, groups: int, layout: str
) -> jax.Array:
    """Computes a convolution of stride 1, padded so that the size stays, as torch's of that `dilation`.

    Args:
      x: [batch, height, width, in] in the order of `layout`.
      kernel: [side, side, in / groups, out] of odd side.
      convolve: `conv.conv2d`.
      dilation: distance of the kernel's taps in pixels.
      groups, layout: see `conv2d`.
    """
    plain = functools.partial(_xla, dilation=dilation, groups=groups, layout=layout)
    phased = functools.partial(_phased, convolve=convolve, dilation=dilation, groups=groups, layout=layout)
    return lax.platform_dependent(x, kernel, cpu=phased, default=plain)


def _xla(x: jax.Array, kernel: jax.Array, *, dilation: int, groups: int, layout: str) -> jax.Array:
    padding = dilation * (kernel.shape[0] // 2)
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=(layout, "HWIO", layout),
        feature_group_count=groups,
    )


def _phased(
    x: jax.Array, kernel: jax.Array, *, convolve: Callable[..., jax.Array], dilation: int, groups: int, layout: str
) -> jax.Array:
    reach = kernel.shape[0] // 2
    height, width = (x.shape[layout.index(axis)] for axis in "HW")
    # Rows of taps that only see padding for every pixel, on either side.
    dead = max(0, reach - (max(height, width) - 1) // dilation)
    kernel, reach = kernel[dead : kernel.shape[0] - dead, dead : kernel.shape[1] - dead], reach - dead
    if not reach:
        return convolve(x, kernel, groups=groups, layout=layout)
    batch_first = layout == "NHWC"
    x = x if batch_first else x.transpose(2, 0, 1, 3)
    count, _, _, channels = x.shape
    rows, columns = -(-height // dilation), -(-width // dilation)
    x = jnp.pad(x, ((0, 0), (0, rows * dilation - height), (0, columns * dilation - width), (0, 0)))
    phases = x.reshape(count, rows, dilation, columns, dilation, channels)
    if batch_first:
        whole = phases.transpose(0, 2, 4, 1, 3, 5).reshape(-1, rows, columns, channels)
        y = convolve(whole, kernel, padding=reach, groups=groups, layout=layout)
        y = y.reshape(count, dilation, dilation, rows, columns, -1).transpose(0, 3, 1, 4, 2, 5)
    else:
        whole = phases.transpose(1, 3, 0, 2, 4, 5).reshape(rows, columns, -1, channels)
        y = convolve(whole, kernel, padding=reach, groups=groups, layout=layout)
        y = y.reshape(rows, columns, count, dilation, dilation, -1).transpose(2, 0, 3, 1, 4, 5)
    y = y.reshape(count, rows * dilation, columns * dilation, -1)[:, :height, :width]
    return y if batch_first else y.transpose(1, 2, 0, 3)
