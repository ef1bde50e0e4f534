"""ResNets as users of Flax write them: `flax.nnx` layers in NHWC, nothing of `sft_jax.ops`.

They compute what `models.resnet` does, under the same parameter names, so that they train in the same loop.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from sft_jax.models import ARCHITECTURES, resnet
from sft_jax.models.architecture import Features
from sft_jax.models.layers import KEEP_STATISTICS
from sft_jax.models.residual_block import BasicBlock, Variant
from sft_jax.ops.norm import EPSILON


def use_stock_layers(arch: str) -> bool:
    """Makes `model.name=arch` a network of stock layers in this process; returns whether there is one."""
    if arch not in resnet.VARIANTS or resnet.VARIANTS[arch].deep:
        return False
    make = functools.partial(ResNet, resnet.VARIANTS[arch])
    ARCHITECTURES[arch] = dataclasses.replace(ARCHITECTURES[arch], make=make)
    return True


class Block(nnx.Module):
    """A basic block or a bottleneck, see `models.residual_block`."""

    def __init__(self, inputs: int, planes: int, stride: int, variant: Variant, *, dtype, axis_name, rngs):
        conv = functools.partial(_conv, dtype=dtype, rngs=rngs)
        norm = functools.partial(_norm, dtype=dtype, axis_name=axis_name, rngs=rngs)
        outputs = planes * variant.block.expansion
        if variant.block is BasicBlock:
            layers = [conv(inputs, planes, 3, stride), norm(planes), conv(planes, planes, 3), norm(planes)]
        else:
            width = planes * variant.width_per_group // 64 * variant.groups
            layers = [
                *(conv(inputs, width, 1), norm(width)),
                *(conv(width, width, 3, stride, variant.groups), norm(width)),
                *(conv(width, outputs, 1), norm(outputs)),
            ]
        self.depth = len(layers) // 2
        for place in range(self.depth):
            setattr(self, f"conv{place + 1}", layers[2 * place])
            setattr(self, f"bn{place + 1}", layers[2 * place + 1])
        changes = stride > 1 or inputs != outputs
        self.downsample = nnx.List([conv(inputs, outputs, 1, stride), norm(outputs)]) if changes else None

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps x [batch, height, width, inputs] to [..., outputs]."""
        shortcut = x
        if self.downsample is not None:
            conv, norm = self.downsample
            shortcut = norm(conv(x), use_running_average=not train)
        for place in range(1, self.depth + 1):
            x = getattr(self, f"bn{place}")(getattr(self, f"conv{place}")(x), use_running_average=not train)
            if place < self.depth:
                x = nnx.relu(x)
        return nnx.relu(x + shortcut)


class ResNet(nnx.Module):
    """See `resnet.ResNet`; stem "imagenet" and no stochastic depth."""

    layer1: nnx.List
    layer2: nnx.List
    layer3: nnx.List
    layer4: nnx.List

    def __init__(
        self,
        variant: Variant,
        num_classes: int,
        *,
        stem: str = "imagenet",
        dtype: jax.typing.DTypeLike = jnp.float32,
        axis_name: str | None = None,
        stochastic_depth: float = 0.0,
        rngs: nnx.Rngs,
    ):
        assert (stem, stochastic_depth) == ("imagenet", 0.0)
        self.dtype = dtype
        self.conv1 = _conv(3, 64, 7, 2, dtype=dtype, rngs=rngs)
        self.bn1 = _norm(64, dtype=dtype, axis_name=axis_name, rngs=rngs)
        channels = 64
        for stage, count in enumerate(variant.layers):
            blocks = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                settings = {"dtype": dtype, "axis_name": axis_name, "rngs": rngs}
                blocks.append(Block(channels, 64 * 2**stage, stride, variant, **settings))
                channels = 64 * 2**stage * variant.block.expansion
            setattr(self, f"layer{stage + 1}", nnx.List(blocks))
        self.fc = nnx.Linear(channels, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """Maps normalised images [batch, height, width, 3] to logits [batch, num_classes]."""
        return self.head(self.features(x, train=train).pooled)

    def features(self, x: jax.Array, *, train: bool = False, key: jax.Array | None = None) -> Features:
        """Maps normalised images to `Features`."""
        x = nnx.relu(self.bn1(self.conv1(x.astype(self.dtype)), use_running_average=not train))
        x = nnx.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])
        maps = []
        for blocks in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in blocks:
                x = block(x, train=train)
            maps.append(x)
        return Features(x.mean((1, 2), dtype=jnp.float32), tuple(maps))

    def head(self, features: jax.Array) -> jax.Array:
        """Maps features [batch, channels] to logits."""
        return self.fc(features)


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, *, dtype, rngs) -> nnx.Conv:
    settings = {"use_bias": False, "feature_group_count": groups, "dtype": dtype, "rngs": rngs}
    return nnx.Conv(inputs, outputs, (size, size), (stride, stride), padding=size // 2, **settings)


def _norm(channels: int, *, dtype, axis_name, rngs) -> nnx.BatchNorm:
    settings = {"momentum": KEEP_STATISTICS, "epsilon": EPSILON, "dtype": dtype, "axis_name": axis_name}
    return nnx.BatchNorm(channels, **settings, rngs=rngs)
