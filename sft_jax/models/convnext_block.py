"""The block of ConvNeXt V1 and V2, and its layers.

Convolutions other than the depthwise one are matrix products over rows [rows, channels], one for each position.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from sft_jax import ops
from sft_jax.models.transformer import DEVIATION, Dense, LayerNorm

EPSILON = 1e-6  # of the response normalisation
KERNEL = 7  # side of the depthwise convolutions
LAYER_SCALE = 1e-6  # initial factor of a residual branch
EXPANSION = 4


def _kernel(rngs: nnx.Rngs, *shape: int) -> nnx.Param:
    return nnx.Param(DEVIATION * jax.random.normal(rngs.params(), shape, jnp.float32))


class Pointwise(Dense):
    """A linear layer that the reference has as a 1x1 convolution: kernel [1, 1, in, out]."""

    def __init__(self, inputs: int, outputs: int, *, dtype, rngs):
        super().__init__(inputs, outputs, dtype=dtype, rngs=rngs)
        self.kernel = nnx.Param(self.kernel[...][None, None])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps rows [rows, in] to [rows, out], of `dtype`."""
        return self.product(x, self.kernel[...][0, 0])


class Patches(nnx.Module):
    """A convolution whose stride is its kernel's size: kernel [size, size, in, out]."""

    def __init__(self, inputs: int, outputs: int, size: int, *, dtype, rngs):
        self.kernel = _kernel(rngs, size, size, inputs, outputs)
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [batch, height, width, in] to [batch, height // size, width // size, out], of `dtype`."""
        size, _, inputs, outputs = self.kernel.shape
        batch, rows, columns = x.shape[0], x.shape[1] // size, x.shape[2] // size
        # The reference ignores the remaining pixels at the right and at the bottom, too.
        cut = x[:, : rows * size, : columns * size].astype(self.dtype)
        patches = cut.reshape(batch, rows, size, columns, size, inputs).swapaxes(2, 3)
        kernel = self.kernel[...].reshape(-1, outputs)
        return ops.dense(patches.reshape(-1, len(kernel)), kernel, self.bias[...]).reshape(
            batch, rows, columns, outputs
        )


class DepthwiseConv(nnx.Module):
    """A convolution of each channel, with padding: kernel [size, size, 1, channels], `size` odd."""

    def __init__(self, channels: int, size: int = KERNEL, *, dtype, rngs):
        self.kernel = _kernel(rngs, size, size, 1, channels)
        self.bias = nnx.Param(jnp.zeros(channels))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves x [batch, height, width, channels]; returns the dtype of the parameters."""
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...]
        y = ops.conv2d(x.astype(self.dtype), kernel, padding=len(kernel) // 2, groups=x.shape[-1], layout="NHWC")
        return y.astype(bias.dtype) + bias[None, None, None]


class ResponseNorm(nnx.Module):
    """V2's global response normalisation: channels compete by their norms over an image."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.zeros(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [batch, positions, channels], in the dtype of the parameters."""
        scale, bias = self.scale[...], self.bias[...]
        wide = x.astype(scale.dtype)
        squares = jnp.square(wide).sum(1, keepdims=True)
        # The gradient of the root is infinite at 0; torch defines that of the norm there as 0.
        norms = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
        relative = norms / (norms.mean(-1, keepdims=True) + jnp.asarray(EPSILON, norms.dtype))
        return wide + scale[None, None] * (wide * relative) + bias[None, None]


class Block(nnx.Module):
    """Depthwise convolution, layer normalisation, two linear layers with GELU between them, and a shortcut.

    V1 scales the branch by a factor for each channel; V2 normalises responses after GELU instead (`response_norm`).
    """

    def __init__(self, channels: int, *, response_norm: bool, as_convolutions: bool, dtype, rngs):
        linear = functools.partial(Pointwise if as_convolutions else Dense, dtype=dtype, rngs=rngs)
        hidden = EXPANSION * channels
        self.conv_dw = DepthwiseConv(channels, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(channels)
        self.mlp = nnx.Dict(fc1=linear(channels, hidden), fc2=linear(hidden, channels))
        if response_norm:
            self.mlp["grn"] = ResponseNorm(hidden)
        self.gamma = None if response_norm else nnx.Param(jnp.full((1, 1, channels), LAYER_SCALE))

    def __call__(self, x: jax.Array, factor: jax.Array | None = None) -> jax.Array:
        """Maps x [batch, height, width, channels]; `factor` [batch], of stochastic depth, may be None."""
        rows = self.norm(self.conv_dw(x).reshape(-1, x.shape[-1]))
        rows = ops.gelu(self.mlp["fc1"](rows))
        if hasattr(self.mlp, "grn"):  # `in` fails in flax 0.12.1
            rows = self.mlp["grn"](rows.reshape(x.shape[0], -1, rows.shape[-1])).reshape(rows.shape)
        branch = self.mlp["fc2"](rows).reshape(x.shape).astype(x.dtype)
        if self.gamma is not None:
            branch = branch * self.gamma[...][None]
        if factor is not None:
            branch = branch * factor.astype(x.dtype)[:, None, None, None]
        return x + branch
