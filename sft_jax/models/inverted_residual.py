"""Blocks of mobile networks: depthwise convolutions between 1x1 ones, and squeeze-and-excitation.

The attribute names are those of `timm.models._efficientnet_blocks`. Activations are [height, width, batch, channels].
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sft_jax.models.layers import BatchNorm2d, Conv2d

Activation = Callable[[jax.Array], jax.Array]


def relu6(x: jax.Array) -> jax.Array:
    """Clips to 0..6; the gradient at both bounds is 0, as in torch, where `jax.nn.relu6` has half of it."""
    return jnp.where(x < 6, jax.nn.relu(x), jnp.asarray(6, x.dtype))


@dataclasses.dataclass(frozen=True)
class Style:
    """What all blocks of a network have in common.

    Attributes:
      activation: follows every normalisation but the last of a block.
      squeeze: whether blocks with a depthwise convolution have squeeze-and-excitation, with a quarter of the block's
        input channels.
      epsilon: of batch norm.
      same_padding: TensorFlow's "SAME" padding, which for stride 2 depends on the input's size and has its larger part
        at the right and bottom. torch's is symmetric.
    """

    activation: Activation
    squeeze: bool
    epsilon: float
    same_padding: bool


class Layer(NamedTuple):
    """A convolution and the normalisation after it, by their attribute names."""

    conv: str
    norm: str
    active: bool
    squeezed: bool = False


# DepthwiseSeparableConv, InvertedResidual, EdgeResidual and ConvBnAct in timm.
Kind = Literal["separable", "inverted", "edge", "conv"]
LAYERS: dict[Kind, tuple[Layer, ...]] = {
    "separable": (Layer("conv_dw", "bn1", True, squeezed=True), Layer("conv_pw", "bn2", False)),
    "inverted": (
        Layer("conv_pw", "bn1", True),
        Layer("conv_dw", "bn2", True, squeezed=True),
        Layer("conv_pwl", "bn3", False),
    ),
    "edge": (Layer("conv_exp", "bn1", True), Layer("conv_pwl", "bn2", False)),
    "conv": (Layer("conv", "bn1", True),),
}


class Pointwise(nnx.Module):
    """A 1x1 convolution with bias of pooled features; kernel [1, 1, in, out] as in torch."""

    def __init__(self, inputs: int, outputs: int, *, rngs):
        deviation = (2.0 / outputs) ** 0.5
        self.kernel = nnx.Param(deviation * jax.random.normal(rngs.params(), (1, 1, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [batch, in] to [batch, out]."""
        return x @ self.kernel[0, 0].astype(x.dtype) + self.bias[...].astype(x.dtype)[None]


class SqueezeExcite(nnx.Module):
    """Scales each channel by a function of all channels' means (Hu et al., 2017, arXiv:1709.01507)."""

    def __init__(self, channels: int, squeezed: int, activation: Activation, *, rngs):
        self.conv_reduce = Pointwise(channels, squeezed, rngs=rngs)
        self.conv_expand = Pointwise(squeezed, channels, rngs=rngs)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [height, width, batch, channels] to the same shape."""
        squeezed = self.activation(self.conv_reduce(x.mean((0, 1))))
        return x * jax.nn.sigmoid(self.conv_expand(squeezed))[None, None]


class ConvNorm(nnx.Module):
    """Mixin: applies a convolution and the normalisation after it."""

    style: Style

    def convolve(self, conv: Conv2d, norm: BatchNorm2d, x: jax.Array, *, train: bool, layout="HWNC") -> jax.Array:
        """Convolves x with the network's kind of padding, and normalises."""
        if self.style.same_padding and conv.stride > 1:
            x = _pad_same(x, conv.kernel.shape[0], conv.stride, layout.index("H"))
        return norm(conv(x, layout=layout), train=train)


def same_conv(inputs: int, outputs: int, size: int, stride: int, style: Style, *, groups: int = 1, dtype, rngs):
    """Makes a convolution for `ConvNorm.convolve`, which pads by itself where the padding is not symmetric."""
    padding = 0 if style.same_padding and stride > 1 else size // 2
    return Conv2d(inputs, outputs, size, stride=stride, padding=padding, groups=groups, dtype=dtype, rngs=rngs)


def _pad_same(x: jax.Array, size: int, stride: int, first: int) -> jax.Array:
    """Pads the two axes of x from `first` on with zeros as TensorFlow's "SAME"."""
    edges = [(0, 0)] * x.ndim
    for axis in (first, first + 1):
        length = x.shape[axis]
        total = max((-(-length // stride) - 1) * stride + size - length, 0)
        edges[axis] = (total // 2, total - total // 2)
    return jnp.pad(x, edges)


class Block(ConvNorm):
    """A residual block of one of `LAYERS`; with a shortcut if it changes neither size nor channels.

    Args:
      kind: which layers it has; the first of kind "edge" and the depthwise ones have `size` and `stride`.
      inputs, outputs: channels.
      size: side of its kernels that are larger than 1x1.
      stride: stride in pixels.
      expansion: channels between its layers, as a multiple of `inputs`.
      style: see `Style`.
    """

    def __init__(
        self,
        kind: Kind,
        inputs: int,
        outputs: int,
        *,
        size: int,
        stride: int,
        expansion: int,
        style: Style,
        dtype,
        axis_name,
        rngs,
    ):
        self.layers, self.style, self.shortcut = LAYERS[kind], style, stride == 1 and inputs == outputs
        inner, channels = inputs * expansion, inputs
        for position, layer in enumerate(self.layers):
            last = position == len(self.layers) - 1
            depthwise, dense = layer.conv == "conv_dw", layer.conv in ("conv_exp", "conv")
            wide = outputs if last else inner
            conv = same_conv(
                channels,
                wide,
                size if depthwise or dense else 1,
                stride if depthwise or dense else 1,
                style,
                groups=channels if depthwise else 1,
                dtype=dtype,
                rngs=rngs,
            )
            setattr(self, layer.conv, conv)
            setattr(self, layer.norm, BatchNorm2d(wide, axis_name=axis_name, epsilon=style.epsilon))
            if layer.squeezed and style.squeeze:
                self.se = SqueezeExcite(wide, max(1, inputs // 4), style.activation, rngs=rngs)
            channels = wide

    def __call__(self, x: jax.Array, *, train: bool, factor: jax.Array | None = None) -> jax.Array:
        """Maps x [height, width, batch, inputs] to [..., outputs]; for `factor` see `skip_factor`."""
        residual = x
        for layer in self.layers:
            x = self.convolve(getattr(self, layer.conv), getattr(self, layer.norm), x, train=train)
            x = self.style.activation(x) if layer.active else x
            x = self.se(x) if layer.squeezed and self.style.squeeze else x
        if not self.shortcut:
            return x
        return residual + (x if factor is None else x * factor.astype(x.dtype)[None, None, :, None])
