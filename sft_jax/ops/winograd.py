"""3x3 convolutions of stride 1 on small maps as bilinear algorithms, y = A [(B x) * (G w)], all by matrix products.

Winograd's F(4, 3) (Lavin & Gray, 2015, arXiv:1509.09308), and Karatsuba's algorithm for axes of two pixels. Padding is
part of the matrices A and B, which act on whole axes: on small maps the transforms are cheap matrix products too.
All arrays are [height, width, batch, channels].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# F(4, 3): four outputs from six inputs with six products. y = F4_OUTPUT [(F4_INPUT x) * (F4_KERNEL w)].
F4_INPUT = np.array(
    [
        [4.0, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
F4_KERNEL = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
F4_OUTPUT = np.array([[1.0, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


class Bilinear(NamedTuple):
    """A zero-padded 3-tap correlation along one axis.

    Attributes:
      b: [points * tiles, size], input transform, points-major.
      g: [points, 3], kernel transform.
      a: [size, points * tiles], output transform.
      points: products per tile.
      tiles: number of tiles along the axis.
    """

    b: np.ndarray
    g: np.ndarray
    a: np.ndarray
    points: int
    tiles: int


def bilinear(size: int) -> Bilinear:
    """Returns the algorithm for an axis of `size` >= 2 pixels."""
    if size == 2:  # y0 = w1 x0 + w2 x1, y1 = w0 x0 + w1 x1: three products instead of four
        return Bilinear(
            b=np.array([[1.0, 1], [0, 1], [1, 0]]),
            g=np.array([[0.0, 1, 0], [0, -1, 1], [1, -1, 0]]),
            a=np.array([[1.0, 1, 0], [1, 0, 1]]),
            points=3,
            tiles=1,
        )
    outputs, points = 4, 6
    tiles = -(-size // outputs)
    b, a = np.zeros((points, tiles, size)), np.zeros((size, points, tiles))
    for tile in range(tiles):
        for k in range(points):
            pixel = tile * outputs + k - 1  # minus one pixel of padding
            if 0 <= pixel < size:
                b[:, tile, pixel] = F4_INPUT[:, k]
        for k in range(min(outputs, size - tile * outputs)):
            a[tile * outputs + k, :, tile] = F4_OUTPUT[k]
    return Bilinear(b.reshape(-1, size), F4_KERNEL, a.reshape(size, -1), points, tiles)


@jax.custom_vjp
def conv_winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes `conv2d` of x [height, width, batch, in], kernel [3, 3, in, out], stride 1, padding 1, sides >= 2."""
    return _forward(x, kernel)[0]


def _forward(x, kernel):
    height, width, batch, channels = x.shape
    outputs = kernel.shape[-1]
    vertical, horizontal = bilinear(height), bilinear(width)
    v = _products(_separable(vertical.b, horizontal.b, x), vertical, horizontal)
    taps = np.einsum("pi,qj->pqij", vertical.g, horizontal.g).reshape(-1, 9)
    u = dot(constant(taps, x), kernel.reshape(9, -1), 1, 0)
    u = u.reshape(vertical.points, 1, horizontal.points, channels, outputs)
    # All rows of tiles share the transformed kernel.
    u = jnp.broadcast_to(u, (vertical.points, vertical.tiles, horizontal.points, channels, outputs))
    u = u.reshape(-1, channels, outputs)
    m = batched_dot(v, u, 2, 1).reshape(len(vertical.b), len(horizontal.b), batch, outputs)
    return _separable(vertical.a, horizontal.a, m), (v, u, jnp.zeros((height, width, batch, 0), x.dtype))


def _backward(residuals, dy):
    # Linear in x and in w: both gradients share the transformed dy, and V is saved from the forward pass.
    v, u, shape_of_x = residuals
    height, width, batch, _ = shape_of_x.shape
    outputs, channels = dy.shape[-1], v.shape[-1]
    vertical, horizontal = bilinear(height), bilinear(width)
    d = _products(_separable(vertical.a.T, horizontal.a.T, dy), vertical, horizontal)
    dv = batched_dot(d, u, 2, 2).reshape(len(vertical.b), len(horizontal.b), batch, channels)
    dx = _separable(vertical.b.T, horizontal.b.T, dv)
    # The barrier keeps the transpose out of the matmul: fused, it would miss XLA's fast path (2x slower).
    du = batched_dot(lax.optimization_barrier(v.swapaxes(1, 2)), d, 2, 1)
    taps = np.einsum("pi,qj,t->ijptq", vertical.g, horizontal.g, np.ones(vertical.tiles)).reshape(9, -1)
    return dx, dot(constant(taps, dy), du.reshape(len(du), -1), 1, 0).reshape(3, 3, channels, outputs)


conv_winograd.defvjp(_forward, _backward)


def _separable(vertical: np.ndarray, horizontal: np.ndarray, x: jax.Array) -> jax.Array:
    """Applies one matrix per spatial axis: [h, w, batch, c] -> [len(vertical), len(horizontal), batch, c]."""
    _, width, batch, channels = x.shape
    tall = dot(constant(vertical, x), x.reshape(len(x), -1), 1, 0).reshape(len(vertical), width, batch * channels)
    # A batched matmul, because XLA's CPU backend would transpose to contract the middle axis.
    stacked = jnp.broadcast_to(constant(horizontal, x), (len(vertical), *horizontal.shape))
    return batched_dot(stacked, tall, 2, 1).reshape(len(vertical), len(horizontal), batch, channels)


def _products(x: jax.Array, vertical: Bilinear, horizontal: Bilinear) -> jax.Array:
    """[v points * tiles, h points * tiles, batch, c] -> [v points * v tiles * h points, h tiles * batch, c]."""
    _, _, batch, channels = x.shape
    return x.reshape(len(vertical.b) * horizontal.points, horizontal.tiles * batch, channels)


def constant(values: np.ndarray, like: jax.Array) -> jax.Array:
    """Converts `values` to the dtype of `like`."""
    return jnp.asarray(values, like.dtype)


def dot(a: jax.Array, b: jax.Array, over_a: int, over_b: int) -> jax.Array:
    """Contracts one axis of each of two arrays."""
    return lax.dot_general(a, b, (((over_a,), (over_b,)), ((), ())))


def batched_dot(a: jax.Array, b: jax.Array, over_a: int, over_b: int) -> jax.Array:
    """Computes `dot`, batched over the first axes."""
    return lax.dot_general(a, b, (((over_a,), (over_b,)), ((0,), (0,))))
