"""Depthwise convolution on CPUs: each channel is convolved with a kernel of its own.

XLA's convolution is 25-60 times slower than torch's there (jax 0.10.2). The forward pass and the gradient of the input
are sums of shifted arrays, one for each tap, which XLA fuses into a single loop. Sums are float32 or wider.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from sft_jax.ops.im2col import output_size
from sft_jax.ops.precision import wide

# The kernel's gradient takes images in blocks of about this many bytes, which stay in the cache for all taps.
BLOCK_BYTES = 2**19
# Columns that one fusion of the kernel's gradient sums: enough to be worth its result, few enough to compile quickly.
COLUMNS = 16
# Positions of the axes: height, width, batch.
AXES = {"HWNC": (0, 1, 2), "NHWC": (1, 2, 0)}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def conv_depthwise(x: jax.Array, kernel: jax.Array, stride: int, padding: int, layout: str) -> jax.Array:
    """Computes `conv2d` of x in `layout` with kernel [rows, columns, 1, channels], one group per channel."""
    return _forward(x, kernel, stride, padding, layout)[0]


def _forward(x, kernel, stride, padding, layout):
    height, width, _ = AXES[layout]
    padded, taps = _pad(x, padding, layout), kernel.astype(wide(x))
    positions = [output_size(x.shape[axis], kernel.shape[i], stride, padding) for i, axis in enumerate((height, width))]
    terms = [
        _window(padded, (row, column), positions, stride, layout).astype(wide(x))
        * taps[row : row + 1, column : column + 1]
        for row in range(kernel.shape[0])
        for column in range(kernel.shape[1])
    ]
    return _unfused(sum(terms[1:], terms[0]).astype(x.dtype)), (x, kernel)


def _backward(stride, padding, layout, residuals, dy):
    x, kernel = residuals
    return _input_gradient(dy, kernel, x.shape, stride, padding, layout), _kernel_gradient(
        x, kernel, dy, stride, padding, layout
    )


conv_depthwise.defvjp(_forward, _backward)


def _input_gradient(dy, kernel, shape, stride, padding, layout):
    """Computes the gradient of x: at stride 1 the convolution of dy with the flipped kernel.

    With a stride, pixels of one phase (index modulo stride) only receive taps of one phase: each phase is summed
    separately, and the phases are interleaved at the end.
    """
    height, width, _ = AXES[layout]
    phase_size = -(-shape[height] // stride), -(-shape[width] // stride)
    edges = [(0, 0)] * 4
    for i, axis in enumerate((height, width)):
        # x[stride * q + phase] receives dy[q + (phase + padding - tap) / stride] through each tap.
        first, last = (padding - kernel.shape[i] + 1) // stride, (stride - 1 + padding) // stride
        edges[axis] = max(0, -first), max(0, last + phase_size[i] - dy.shape[axis])
    padded, taps = jnp.pad(dy, edges), kernel.astype(wide(dy))

    def phase_sum(phases):
        total = jnp.zeros((), taps.dtype)
        for row in range(kernel.shape[0]):
            for column in range(kernel.shape[1]):
                shifts = phases[0] + padding - row, phases[1] + padding - column
                if any(shift % stride for shift in shifts):
                    continue
                start = [shift // stride + edges[axis][0] for shift, axis in zip(shifts, (height, width), strict=True)]
                total += (
                    _window(padded, start, phase_size, 1, layout).astype(taps.dtype)
                    * taps[row : row + 1, column : column + 1]
                )
        whole = list(shape)
        whole[height], whole[width] = phase_size
        return _unfused(jnp.broadcast_to(total, whole).astype(dy.dtype))

    if stride == 1:
        return phase_sum((0, 0))
    columns = [jnp.stack([phase_sum((i, j)) for j in range(stride)], width + 1) for i in range(stride)]
    whole = list(shape)
    whole[height], whole[width] = phase_size[0] * stride, phase_size[1] * stride
    return lax.slice(jnp.stack(columns, height + 1).reshape(whole), (0, 0, 0, 0), shape)


def _kernel_gradient(x, kernel, dy, stride, padding, layout):
    """Computes the gradient of the kernel: for each tap the sum of shifted x times dy over all but the channels.

    XLA does not vectorise the reduction of a fused product. So the columns are summed as terms of one expression, and
    the rows and images by a product with ones. On one core 64 images of 8 x 8 x 672 with 25 taps take 8 ms, not 55.
    """
    height, width, images = AXES[layout]
    rows, columns, _, channels = kernel.shape
    batch, dtype = x.shape[images], wide(x)
    block = _divisor(batch, max(1, BLOCK_BYTES * batch // (x.size * x.dtype.itemsize)))
    positions = dy.shape[height], dy.shape[width]

    def tap_gradient(x, dy, tap):
        """Computes the gradient [channels] of one tap for a block of images."""
        shape = list(x.shape)
        shape[height], shape[width] = ((count - 1) * stride + 1 for count in positions)
        start: list = [0] * 4
        start[height], start[width] = tap // columns, tap % columns
        total = jnp.zeros((), dtype)
        for first in range(0, positions[1], COLUMNS):
            terms = []
            for column in range(first, min(first + COLUMNS, positions[1])):
                # One column at a time: dynamic slices of it are fused into the sum.
                at, size = list(start), list(shape)
                at[width], size[width] = start[width] + column * stride, 1
                seen = _window(lax.dynamic_slice(x, at, size), (0, 0), (positions[0], 1), stride, layout)
                terms.append(seen.astype(dtype) * lax.slice_in_dim(dy, column, column + 1, axis=width).astype(dtype))
            sums = sum(terms[1:], terms[0]).reshape(-1, channels)
            total += (jnp.ones((1, len(sums)), dtype) @ sums)[0]
        return total

    def add_block(total, index):
        some_x = _pad(lax.dynamic_slice_in_dim(x, index * block, block, images), padding, layout)
        some_dy = lax.dynamic_slice_in_dim(dy, index * block, block, images)
        return total + lax.map(lambda tap: tap_gradient(some_x, some_dy, tap), jnp.arange(rows * columns)), None

    total, _ = lax.scan(add_block, jnp.zeros((rows * columns, channels), dtype), jnp.arange(batch // block))
    return total.reshape(kernel.shape).astype(kernel.dtype)


def _unfused(x):
    """Returns x unchanged; XLA does not fuse the operations before it with those after it.

    Otherwise XLA's CPU backend (jax 0.10.2) moves the sum into the matrix products and reductions that use it, and
    first writes each shifted array to memory. `lax.optimization_barrier` does not prevent that.
    """
    precision = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, precision.nexp, precision.nmant)


def _window(x, start, count, stride, layout):
    """Takes `count` rows and columns of x from `start` in steps of `stride`."""
    low, high, step = [0] * 4, list(x.shape), [1] * 4
    for axis, first, number in zip(AXES[layout], start, count, strict=False):
        low[axis], high[axis], step[axis] = first, first + (number - 1) * stride + 1, stride
    return lax.slice(x, low, high, step)


def _pad(x, padding, layout):
    height, width, _ = AXES[layout]
    return jnp.pad(x, [(padding, padding) if axis in (height, width) else (0, 0) for axis in range(4)])


def _divisor(number: int, most: int) -> int:
    """Returns the largest divisor of `number` that is at most `most`."""
    return next(count for count in range(min(number, most), 0, -1) if number % count == 0)
