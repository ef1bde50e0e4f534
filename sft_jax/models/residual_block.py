"""Blocks of residual networks: two or three convolutions and a shortcut.

The attribute names are torchvision's, and timm's in ResNet-D. Activations are [height, width, batch, channels], for
which `ops.conv2d` is fast.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sft_jax.models.layers import BatchNorm2d, Conv2d


class Spread(NamedTuple):
    """How far apart the pixels are that a block reads.

    Attributes:
      stride: of its first 3x3 convolution.
      first: dilation of this convolution.
      others: dilation of the other 3x3 convolutions.
    """

    stride: int
    first: int = 1
    others: int = 1


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and 34)."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, spread: "Spread", variant: "Variant", *, dtype, axis_name, rngs):
        stride, first, dilation = spread
        self.conv1 = Conv2d(inputs, planes, 3, stride=stride, padding=first, dilation=first, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm2d(planes, axis_name=axis_name)
        self.conv2 = Conv2d(planes, planes, 3, padding=dilation, dilation=dilation, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm2d(planes, axis_name=axis_name)
        self.downsample = _downsample(inputs, planes, stride, variant, dtype=dtype, axis_name=axis_name, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool, factor: jax.Array | None = None) -> jax.Array:
        """Maps x [height, width, batch, inputs] to [..., planes]; see `with_residual` for `factor`."""
        shortcut = _shortcut(self.downsample, x, train=train)
        x = self.bn1(self.conv1(x), train=train, relu=True)
        return with_residual(self.bn2, self.conv2(x), shortcut, train=train, factor=factor)


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut (ResNet-50 and up, wide ResNet, ResNeXt).

    The stride is in the 3x3 convolution, as in torchvision ("ResNet V1.5"), not in the first 1x1 convolution as in the
    paper.
    """

    expansion = 4

    def __init__(self, inputs: int, planes: int, spread: "Spread", variant: "Variant", *, dtype, axis_name, rngs):
        stride, first, _ = spread
        width = planes * variant.width_per_group // 64 * variant.groups
        outputs = planes * self.expansion
        self.conv1 = Conv2d(inputs, width, 1, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm2d(width, axis_name=axis_name)
        self.conv2 = Conv2d(
            width,
            width,
            3,
            stride=stride,
            padding=first,
            dilation=first,
            groups=variant.groups,
            dtype=dtype,
            rngs=rngs,
        )
        self.bn2 = BatchNorm2d(width, axis_name=axis_name)
        self.conv3 = Conv2d(width, outputs, 1, dtype=dtype, rngs=rngs)
        self.bn3 = BatchNorm2d(outputs, axis_name=axis_name)
        self.downsample = _downsample(inputs, outputs, stride, variant, dtype=dtype, axis_name=axis_name, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool, factor: jax.Array | None = None) -> jax.Array:
        """Maps x [height, width, batch, inputs] to [..., 4 planes]; see `with_residual` for `factor`."""
        shortcut = _shortcut(self.downsample, x, train=train)
        x = self.bn1(self.conv1(x), train=train, relu=True)
        x = self.bn2(self.conv2(x), train=train, relu=True)
        return with_residual(self.bn3, self.conv3(x), shortcut, train=train, factor=factor)


def _downsample(
    inputs: int, outputs: int, stride: int, variant: "Variant", *, dtype, axis_name, rngs
) -> nnx.List | None:
    if stride == 1 and inputs == outputs:
        return None
    norm = BatchNorm2d(outputs, axis_name=axis_name)
    if variant.deep:
        return nnx.List([AveragePool(stride), Conv2d(inputs, outputs, 1, dtype=dtype, rngs=rngs), norm])
    return nnx.List([Conv2d(inputs, outputs, 1, stride=stride, dtype=dtype, rngs=rngs), norm])


def _shortcut(downsample: nnx.List | None, x: jax.Array, *, train: bool) -> jax.Array:
    if downsample is None:
        return x
    *layers, norm = downsample
    for layer in layers:
        x = layer(x)
    return norm(x, train=train)


class AveragePool(nnx.Module):
    """The first layer of ResNet-D's shortcuts, `torch.nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)`.

    With a stride of 1 it is the identity.
    """

    def __init__(self, stride: int):
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [height, width, batch, channels] to [ceil(height / stride), ceil(width / stride), ...]."""
        if self.stride == 1:
            return x
        height, width, batch, channels = x.shape
        # The mean of a window that is cut off at the edge is that of the window with its pixels repeated.
        x = jnp.pad(x, ((0, height % 2), (0, width % 2), (0, 0), (0, 0)), mode="edge")
        return x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, batch, channels).mean((1, 3))


def with_residual(norm: BatchNorm2d, x: jax.Array, shortcut: jax.Array, *, train: bool, factor: jax.Array | None):
    """Computes ReLU(norm(x) * factor + shortcut); `factor` [batch], of stochastic depth, may be None."""
    if factor is None:
        return norm(x, train=train, relu=True, residual=shortcut)
    branch = norm(x, train=train) * factor.astype(x.dtype)[None, None, :, None]
    return jax.nn.relu(branch + shortcut)


@dataclasses.dataclass(frozen=True)
class Variant:
    """The arguments of `torchvision.models.resnet.ResNet` that distinguish the networks; `deep` for ResNet-D."""

    block: type[BasicBlock] | type[Bottleneck]
    layers: tuple[int, int, int, int]
    groups: int = 1
    width_per_group: int = 64
    deep: bool = False
