"""Convolution as one matrix product over patches (im2col), restricted to kernel taps that see non-padding input.

For CPUs, arrays are [height, width, batch, channels], so that one position of all images is contiguous in memory.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def output_size(size: int, window: int, stride: int, padding: int) -> int:
    """Returns the number of window positions along an axis of `size` pixels."""
    return (size + 2 * padding - window) // stride + 1


def live_taps(size: int, window: int, stride: int, padding: int) -> range | None:
    """Returns the kernel taps that see non-padding input at some position; the others only ever see padding.

    For one-pixel maps only the centre of a 3x3 kernel is live: 37 -> 21 million multiply-adds per image in ResNet-18 at
    32 px. None if they are not consecutive (strides larger than the image).
    """
    positions = range(output_size(size, window, stride, padding))
    live = [tap for tap in range(window) if any(0 <= at * stride + tap - padding < size for at in positions)]
    return range(live[0], live[-1] + 1) if live and live[-1] - live[0] + 1 == len(live) else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv_im2col(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Computes `conv2d` of x [height, width, batch, in], kernel [rows, columns, in, out], consecutive live taps."""
    return _forward(x, kernel, stride, padding)[0]


def _forward(x, kernel, stride, padding):
    patches = _patches(x, kernel.shape, stride, padding)
    weights = _crop(kernel, x.shape, stride, padding).reshape(-1, kernel.shape[-1])
    return lax.dot_general(patches, weights, (((3,), (0,)), ((), ()))), (x, kernel)


def _backward(stride, padding, residuals, dy):
    x, kernel = residuals
    inputs, outputs = kernel.shape[2:]
    rows, columns = _taps(x.shape, kernel.shape, stride, padding)
    flat = dy.reshape(-1, outputs)
    patches = _patches(x, kernel.shape, stride, padding).reshape(len(flat), -1)
    d_live = lax.dot_general(patches, flat, (((0,), (0,)), ((), ()))).reshape(len(rows), len(columns), inputs, outputs)
    around = [(taps[0], size - 1 - taps[-1]) for taps, size in zip((rows, columns), kernel.shape, strict=False)]
    d_kernel = jnp.pad(d_live, (*around, (0, 0), (0, 0)))
    weights = _crop(kernel, x.shape, stride, padding).reshape(-1, outputs)
    d_patches = lax.dot_general(flat, weights, (((1,), (1,)), ((), ()))).reshape(
        *dy.shape[:3], len(rows), len(columns), inputs
    )
    return _scatter(d_patches, x.shape, rows, columns, stride, padding), d_kernel


conv_im2col.defvjp(_forward, _backward)


def _taps(shape, kernel_shape, stride, padding):
    rows = live_taps(shape[0], kernel_shape[0], stride, padding)
    columns = live_taps(shape[1], kernel_shape[1], stride, padding)
    assert rows is not None
    assert columns is not None
    return rows, columns


def _crop(kernel, shape, stride, padding):
    rows, columns = _taps(shape, kernel.shape, stride, padding)
    return kernel[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _patches(x, kernel_shape, stride, padding):
    """Extracts the patch at each window position: [out height, out width, batch, taps * in]."""
    height, width, batch, channels = x.shape
    rows, columns = _taps(x.shape, kernel_shape, stride, padding)
    out_height = output_size(height, kernel_shape[0], stride, padding)
    out_width = output_size(width, kernel_shape[1], stride, padding)
    padded = jnp.pad(x, ((padding, padding), (padding, padding), (0, 0), (0, 0)))
    views = [
        lax.slice(
            padded,
            (row, column, 0, 0),
            (row + (out_height - 1) * stride + 1, column + (out_width - 1) * stride + 1, batch, channels),
            (stride, stride, 1, 1),
        )
        for row in rows
        for column in columns
    ]
    return jnp.concatenate(views, -1)


def _scatter(d_patches, shape, rows, columns, stride, padding):
    """Adds each tap's gradient [out height, out width, batch, in] to the pixels it came from (col2im).

    With a stride, pixels of one phase (index modulo stride) only receive taps of one phase: each phase is summed
    separately, and the phases are interleaved at the end.
    """
    height, width, batch, channels = shape
    phase_height, phase_width = -(-height // stride), -(-width // stride)
    zero = jnp.zeros((), d_patches.dtype)

    def phase_sum(phase_row, phase_column):
        total = None
        for a, row in enumerate(rows):
            for b, column in enumerate(columns):
                top, left = row - padding - phase_row, column - padding - phase_column
                if top % stride or left % stride:
                    continue
                top, left = top // stride, left // stride
                below = phase_height - d_patches.shape[0] - top
                right = phase_width - d_patches.shape[1] - left
                part = lax.pad(
                    d_patches[:, :, :, a, b], zero, ((top, below, 0), (left, right, 0), (0, 0, 0), (0, 0, 0))
                )
                total = part if total is None else total + part
        return jnp.zeros((phase_height, phase_width, batch, channels), d_patches.dtype) if total is None else total

    if stride == 1:
        return phase_sum(0, 0)
    phases = [jnp.stack([phase_sum(i, j) for j in range(stride)], 2) for i in range(stride)]
    whole = jnp.stack(phases, 1).reshape(phase_height * stride, phase_width * stride, batch, channels)
    return whole[:height, :width]


def conv_patches(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Computes `conv2d` of x [batch, height, width, in] for GPUs, with the gradients of automatic differentiation."""
    size = x.shape[1:3]
    rows, columns = _taps(size, kernel.shape, stride, padding)
    height, width = (output_size(size[axis], kernel.shape[axis], stride, padding) for axis in (0, 1))
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    views = [
        padded[:, row : row + (height - 1) * stride + 1 : stride, column : column + (width - 1) * stride + 1 : stride]
        for row in rows
        for column in columns
    ]
    weights = _crop(kernel, size, stride, padding).reshape(-1, kernel.shape[-1])
    batch = x.shape[0]  # not len(x): an exported program's is symbolic
    patches = jnp.concatenate(views, -1).reshape(batch * height * width, len(weights))
    return (patches @ weights).reshape(batch, height, width, kernel.shape[-1])
