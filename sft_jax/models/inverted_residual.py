"""Blocks of mobile networks: depthwise convolutions between 1x1 ones, and squeeze-and-excitation.

The attribute names are those of `timm.models._efficientnet_blocks`. Activations are [batch, height, width, channels].
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


def hard_sigmoid(x: jax.Array) -> jax.Array:
    """Computes relu6(x + 3) / 6."""
    return relu6(x + jnp.asarray(3, x.dtype)) / jnp.asarray(6, x.dtype)


def hard_swish(x: jax.Array) -> jax.Array:
    """Computes x hard_sigmoid(x) (Howard et al., 2019, arXiv:1905.02244)."""
    return x * hard_sigmoid(x)


def rounded(channels: float) -> int:
    """Rounds to a multiple of 8, and up if that would lose more than a tenth."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def quarter_of_inputs(inputs: int, channels: int) -> int:
    """Returns EfficientNet's `Squeeze.channels`."""
    return max(1, inputs // 4)


@dataclasses.dataclass(frozen=True)
class Squeeze:
    """The squeeze-and-excitation of a network.

    Attributes:
      activation: follows its first layer.
      gate: follows its second one.
      channels: (inputs of the block, channels that are scaled) -> channels between its layers.
    """

    activation: Activation = jax.nn.silu
    gate: Activation = jax.nn.sigmoid
    channels: Callable[[int, int], int] = quarter_of_inputs


@dataclasses.dataclass(frozen=True)
class Style:
    """What all blocks of a network have in common.

    Attributes:
      activation: follows every normalisation but the last of a block.
      squeeze: the squeeze-and-excitation of blocks with a depthwise convolution; None for none.
      epsilon: of batch norm.
      same_padding: TensorFlow's "SAME" padding, which for stride 2 depends on the input's size and has its larger part
        at the right and bottom. torch's is symmetric.
    """

    activation: Activation
    squeeze: Squeeze | None
    epsilon: float
    same_padding: bool


class Layer(NamedTuple):
    """A convolution and the normalisation after it, by their attribute names."""

    conv: str
    norm: str
    active: bool
    squeezed: bool = False


# DepthwiseSeparableConv, InvertedResidual, EdgeResidual, ConvBnAct and UniversalInvertedResidual in timm.
Kind = Literal["separable", "inverted", "edge", "conv", "universal"]
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

    def __init__(self, channels: int, squeezed: int, style: Squeeze, *, rngs):
        self.conv_reduce = Pointwise(channels, squeezed, rngs=rngs)
        self.conv_expand = Pointwise(squeezed, channels, rngs=rngs)
        self.style = style

    def __call__(self, x: jax.Array, positions: tuple[int, int] = (1, 2)) -> jax.Array:
        """Maps x [batch, height, width, channels] to the same shape; `positions` are the axes of height and width."""
        squeezed = self.style.activation(self.conv_reduce(x.mean(positions)))
        return x * jnp.expand_dims(self.style.gate(self.conv_expand(squeezed)), positions)


class ConvNorm(nnx.Module):
    """Mixin: applies a convolution and the normalisation after it."""

    style: Style

    def convolve(self, conv: Conv2d, norm: BatchNorm2d, x: jax.Array, *, train: bool) -> jax.Array:
        """Convolves x [batch, height, width, channels] with the network's kind of padding, and normalises."""
        if self.style.same_padding and conv.stride > 1:
            x = _pad_same(x, conv.kernel.shape[0], conv.stride)
        size, _, inputs, _ = conv.kernel.shape
        if size > 1 and inputs > 3:  # neither 1x1, nor depthwise, nor the first: on CPUs the other layout is faster
            return norm(conv(x.transpose(1, 2, 0, 3)).transpose(2, 0, 1, 3), train=train)
        return norm(conv(x, layout="NHWC"), train=train)


def same_conv(
    inputs: int,
    outputs: int,
    size: int,
    stride: int,
    style: Style,
    *,
    dilation: int = 1,
    groups: int = 1,
    dtype,
    rngs,
):
    """Makes a convolution for `ConvNorm.convolve`, which pads by itself where the padding is not symmetric."""
    padding = 0 if style.same_padding and stride > 1 else dilation * (size // 2)
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return Conv2d(inputs, outputs, size, **settings, dtype=dtype, rngs=rngs)


def _pad_same(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Pads images x [batch, height, width, channels] with zeros as TensorFlow's "SAME"."""
    edges = [(0, 0)] * 4
    for axis in (1, 2):
        length = x.shape[axis]
        total = max((-(-length // stride) - 1) * stride + size - length, 0)
        edges[axis] = (total // 2, total - total // 2)
    return jnp.pad(x, edges)


class Block(ConvNorm):
    """A residual block of one of `LAYERS`.

    Args:
      kind: which layers it has; the first of kind "edge" and the depthwise ones have `size` and `stride`.
      inputs, outputs: channels.
      size: side of its kernels that are larger than 1x1.
      stride: stride in pixels.
      inner: channels between its layers.
      dilation: of its kernels that are larger than 1x1.
      shortcut: whether it has a shortcut if it changes neither size nor channels.
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
        inner: int,
        dilation: int = 1,
        shortcut: bool = True,
        style: Style,
        dtype,
        axis_name,
        rngs,
    ):
        self.layers, self.style = LAYERS[kind], style
        self.shortcut = shortcut and stride == 1 and inputs == outputs
        channels = inputs
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
                dilation=dilation if depthwise or dense else 1,
                groups=channels if depthwise else 1,
                dtype=dtype,
                rngs=rngs,
            )
            setattr(self, layer.conv, conv)
            setattr(self, layer.norm, BatchNorm2d(wide, axis_name=axis_name, epsilon=style.epsilon))
            if layer.squeezed and style.squeeze:
                self.se = SqueezeExcite(wide, style.squeeze.channels(inputs, wide), style.squeeze, rngs=rngs)
            channels = wide

    def __call__(self, x: jax.Array, *, train: bool, factor: jax.Array | None = None) -> jax.Array:
        """Maps x [batch, height, width, inputs] to [..., outputs]; for `factor` see `skip_factor`."""
        residual = x
        for layer in self.layers:
            x = self.convolve(getattr(self, layer.conv), getattr(self, layer.norm), x, train=train)
            x = self.style.activation(x) if layer.active else x
            x = self.se(x) if layer.squeezed and self.style.squeeze else x
        return with_shortcut(residual, x, factor) if self.shortcut else x


def with_shortcut(x: jax.Array, branch: jax.Array, factor: jax.Array | None) -> jax.Array:
    """Adds a residual branch to x [batch, height, width, channels]; for `factor` see `skip_factor`."""
    return x + (branch if factor is None else branch * factor.astype(x.dtype)[:, None, None, None])
