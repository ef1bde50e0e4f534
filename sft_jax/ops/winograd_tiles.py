"""3x3 convolutions of stride 1 on large maps: Winograd's F(4, 3) (see `winograd.py`), tile by tile.

The transforms are sums of strided slices, whose cost per pixel does not grow with the size of the map, unlike that of
matrices over whole axes. All tiles form the rows of 36 matrix products, large enough for XLA's CPU backend (jax 0.10.2)
to parallelise, which it does from about 2^23 multiply-adds per product.
All arrays are [height, width, batch, channels].
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sft_jax.ops.winograd import F4_INPUT, F4_KERNEL, F4_OUTPUT, batched_dot, constant, dot

OUTPUTS, POINTS = 4, 6  # per tile, along each axis
# Assumed for the symbolic batch of an exported program; only the choice between two algorithms depends on it.
USUAL_BATCH = 32


def product_size(shape: tuple[int, ...], outputs: int) -> int:
    """Returns the multiply-adds of each of the 36 products for an input of this shape."""
    height, width, batch, channels = shape
    if not isinstance(batch, int):
        batch = USUAL_BATCH
    return _tiles(height) * _tiles(width) * batch * channels * outputs


@jax.custom_vjp
def conv_winograd_tiles(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes `conv2d` of x [height, width, batch, in] with kernel [3, 3, in, out], stride 1, padding 1."""
    return _forward(x, kernel)[0]


def _forward(x, kernel):
    height, width, batch, channels = x.shape
    v = _rows([column for row in _points(x, 0) for column in _points(row, 1)])
    taps = np.einsum("pi,qj->pqij", F4_KERNEL, F4_KERNEL).reshape(POINTS**2, 9)
    u = dot(constant(taps, x), kernel.reshape(9, -1), 1, 0).reshape(POINTS**2, channels, -1)
    m = batched_dot(v, u, 2, 1).reshape(POINTS, POINTS, _tiles(height), _tiles(width), batch, -1)
    y = _outputs([_outputs(row, 1) for row in m], 0)
    return y[:height, :width], (v, u, jnp.zeros((height, width, batch, 0), x.dtype))


def _backward(residuals, dy):
    # Linear in x and in w: both gradients share the transformed dy, and V is saved from the forward pass.
    v, u, shape_of_x = residuals
    height, width, batch, _ = shape_of_x.shape
    d = _rows([column for row in _outputs_transposed(dy, 0) for column in _outputs_transposed(row, 1)])
    dv = batched_dot(d, u, 2, 2).reshape(POINTS, POINTS, _tiles(height), _tiles(width), batch, -1)
    dx = _points_transposed([_points_transposed(row, 1) for row in dv], 0)
    # The barrier keeps the transpose out of the matmul, as in `winograd.py`: 20 ms per convolution at 56 px.
    du = batched_dot(lax.optimization_barrier(v.swapaxes(1, 2)), d, 2, 1)
    taps = np.einsum("pi,qj->ijpq", F4_KERNEL, F4_KERNEL).reshape(9, POINTS**2)
    d_kernel = dot(constant(taps, dy), du.reshape(POINTS**2, -1), 1, 0)
    return dx[:height, :width], d_kernel.reshape(3, 3, v.shape[-1], dy.shape[-1])


conv_winograd_tiles.defvjp(_forward, _backward)


def _tiles(size: int) -> int:
    return -(-size // OUTPUTS)


def _rows(planes: Sequence[jax.Array]) -> jax.Array:
    """Stacks 36 arrays [tiles, tiles, batch, channels] -> [36, tiles * tiles * batch, channels]."""
    return jnp.stack([plane.reshape(-1, plane.shape[-1]) for plane in planes])


def _points(x: jax.Array, axis: int) -> list[jax.Array]:
    """Input transform along an axis: [size, ...] -> 6 of [tiles, ...]. Tiles of six pixels overlap by two."""
    size, tiles = x.shape[axis], _tiles(x.shape[axis])
    x = _pad(x, axis, 1, OUTPUTS * tiles + 1 - size)
    pixels = [lax.slice_in_dim(x, k, k + OUTPUTS * (tiles - 1) + 1, OUTPUTS, axis) for k in range(POINTS)]
    return [_combine(weights, pixels) for weights in F4_INPUT]


def _points_transposed(parts: Sequence[jax.Array], axis: int) -> jax.Array:
    """Transpose of `_points`: 6 of [tiles, ...] -> [4 * tiles, ...]; overlapping pixels are summed."""
    pixels = [_combine(weights, parts) for weights in F4_INPUT.T]
    tiles = pixels[0].shape[axis]
    from_next = _pad(lax.slice_in_dim(pixels[0], 1, tiles, axis=axis), axis, 0, 1)
    from_previous = _pad(lax.slice_in_dim(pixels[5], 0, tiles - 1, axis=axis), axis, 1, 0)
    return _interleave([pixels[1] + from_previous, pixels[2], pixels[3], pixels[4] + from_next], axis)


def _outputs(parts: Sequence[jax.Array], axis: int) -> jax.Array:
    """Output transform along an axis: 6 of [tiles, ...] -> [4 * tiles, ...]."""
    return _interleave([_combine(weights, parts) for weights in F4_OUTPUT], axis)


def _outputs_transposed(dy: jax.Array, axis: int) -> list[jax.Array]:
    """Transpose of `_outputs`: [size, ...] -> 6 of [tiles, ...]."""
    size, tiles = dy.shape[axis], _tiles(dy.shape[axis])
    dy = _pad(dy, axis, 0, OUTPUTS * tiles - size)
    pixels = [lax.slice_in_dim(dy, k, k + OUTPUTS * (tiles - 1) + 1, OUTPUTS, axis) for k in range(OUTPUTS)]
    return [_combine(weights, pixels) for weights in F4_OUTPUT.T]


def _combine(weights: np.ndarray, parts: Sequence[jax.Array]) -> jax.Array:
    """Computes the weighted sum, skipping weights of 0 and multiplications by 1."""
    terms = [(weight, part) for weight, part in zip(weights, parts, strict=True) if weight]
    scaled = [part if weight == 1 else part * constant(weight, part) for weight, part in terms]
    return sum(scaled[1:], scaled[0])


def _interleave(parts: Sequence[jax.Array], axis: int) -> jax.Array:
    stacked = jnp.stack(parts, axis + 1)
    return stacked.reshape(*stacked.shape[:axis], -1, *stacked.shape[axis + 2 :])


def _pad(x: jax.Array, axis: int, before: int, after: int) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (before, after)
    return jnp.pad(x, widths)
