"""RegNet Y (Radosavovic et al., 2020, arXiv:2003.13678) as in `torchvision.models.regnet`.

Attribute paths are timm's state_dict keys, except that of the head; `torchvision_path` maps them to torchvision's.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from sft_jax.models.architecture import Architecture, located_by
from sft_jax.models.block_network import PositionsFirstNetwork
from sft_jax.models.inverted_residual import Squeeze, SqueezeExcite
from sft_jax.models.layers import Conv2d, Linear, NormedConv
from sft_jax.models.residual_block import with_residual
from sft_jax.models.stochastic_depth import skip_factor

STEM = 32  # channels


@dataclasses.dataclass(frozen=True)
class Variant:
    """What distinguishes the networks.

    Attributes:
      blocks, channels: of the four stages.
      group: channels of a group of the 3x3 convolutions.
    """

    blocks: tuple[int, int, int, int]
    channels: tuple[int, int, int, int]
    group: int


class Block(nnx.Module):
    """1x1, grouped 3x3 and 1x1 convolutions with squeeze-and-excitation before the last one, and a shortcut.

    Activations are [height, width, batch, channels].
    """

    def __init__(self, inputs: int, outputs: int, stride: int, group: int, *, dtype, axis_name, rngs):
        def conv(inputs: int, size: int, stride: int = 1, groups: int = 1) -> NormedConv:
            settings = {"stride": stride, "padding": size // 2, "groups": groups}
            return NormedConv(Conv2d(inputs, outputs, size, **settings, dtype=dtype, rngs=rngs), axis_name=axis_name)

        self.conv1 = conv(inputs, 1)
        self.conv2 = conv(outputs, 3, stride, outputs // group)
        self.se = SqueezeExcite(outputs, round(inputs / 4), Squeeze(activation=jax.nn.relu), rngs=rngs)
        self.conv3 = conv(outputs, 1)
        self.downsample = conv(inputs, 1, stride) if stride > 1 or inputs != outputs else None

    def __call__(self, x: jax.Array, *, train: bool, factor: jax.Array | None = None) -> jax.Array:
        """Maps x [height, width, batch, inputs] to [..., outputs]; see `with_residual` for `factor`."""
        shortcut = x if self.downsample is None else self.downsample(x, train=train)
        x = self.conv1(x, train=train, relu=True)
        x = self.se(self.conv2(x, train=train, relu=True), (0, 1))
        return with_residual(self.conv3.bn, self.conv3.conv(x), shortcut, train=train, factor=factor)


class RegNet(PositionsFirstNetwork):
    """A RegNet: stem, four stages of blocks, global average pooling, linear head.

    Parameters are float32; activations and matrix products are in `dtype`. Batch-norm statistics, the pooling, the head
    and the logits are float32.

    Args:
      variant: a value of `VARIANTS`.
      num_classes: outputs of the head `fc`.
      stem: "imagenet", the only one.
      dtype: dtype of the computation.
      axis_name: the mapped axis over which batch norm's statistics are averaged in training.
      stochastic_depth: drop rate of the last block in training; it grows linearly from 0 in the first.
      rngs: `nnx.Rngs(params=seed)` for the initial weights.
    """

    s1: nnx.Dict
    s2: nnx.Dict
    s3: nnx.Dict
    s4: nnx.Dict

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
        self.dtype, self.axis_name, self.stochastic_depth = dtype, axis_name, stochastic_depth
        self.blocks = variant.blocks
        self.stem = NormedConv(Conv2d(3, STEM, 3, stride=2, padding=1, dtype=dtype, rngs=rngs), axis_name=axis_name)
        inputs = STEM
        for stage, (count, channels) in enumerate(zip(variant.blocks, variant.channels, strict=True), start=1):
            blocks = {}
            for number in range(1, count + 1):
                stride = 2 if number == 1 else 1
                blocks[f"b{number}"] = Block(
                    inputs, channels, stride, variant.group, dtype=dtype, axis_name=axis_name, rngs=rngs
                )
                inputs = channels
            setattr(self, f"s{stage}", nnx.Dict(blocks))
        self.fc = Linear(inputs, num_classes, rngs=rngs)

    def _stages(self, x: jax.Array, *, train: bool, key: jax.Array | None = None) -> Iterator[tuple[str, jax.Array]]:
        """Yields as `stages`, but activations [height, width, batch, channels], for which `ops.conv2d` is fast."""
        x = self.stem(x.astype(self.dtype), train=train, relu=True, layout="NHWC").transpose(1, 2, 0, 3)
        yield "stem", x
        stages, position, last = (self.s1, self.s2, self.s3, self.s4), 0, sum(self.blocks) - 1
        for stage, (blocks, count) in enumerate(zip(stages, self.blocks, strict=True), start=1):
            for number in range(1, count + 1):
                rate = self.stochastic_depth * position / last
                factor = skip_factor(key, rate, position, x.shape[2], self.axis_name)
                x = self.run_block(blocks[f"b{number}"], x, train=train, factor=factor)
                position += 1
                yield f"s{stage}.b{number}", x


_BLOCK = {"conv1": "f.a", "conv2": "f.b", "conv3": "f.c", "downsample": "proj"}
_LAYER = {"conv": "0", "bn": "1", "conv_reduce": "f.se.fc1", "conv_expand": "f.se.fc2"}


def torchvision_path(path: str) -> str:
    """Returns torchvision's path of a module, e.g. "trunk_output.block2.block2-0.f.a.0" for "s2.b1.conv1.conv"."""
    if match := re.fullmatch(r"stem\.(conv|bn)", path):
        return f"stem.{_LAYER[match[1]]}"
    match = re.fullmatch(r"s(\d)\.b(\d+)\.(conv[123]|downsample|se)\.(conv|bn|conv_reduce|conv_expand)", path)
    if match is None:
        return path
    stage, number, module, layer = match.groups()
    block = f"trunk_output.block{stage}.block{stage}-{int(number) - 1}"
    return f"{block}.{_LAYER[layer]}" if module == "se" else f"{block}.{_BLOCK[module]}.{_LAYER[layer]}"


def architecture(name: str, variant: Variant) -> Architecture:
    """Describes the network `name` of the family."""
    return Architecture(
        name=name,
        family="regnet",
        make=functools.partial(RegNet, variant),
        head="fc",
        channels=variant.channels,
        strides=(4, 8, 16, 32),
        locate=located_by(
            [
                (r"stem\.", lambda match: (0, 0)),
                (r"s(\d)\.b(\d+)\.", lambda match: (int(match[1]), int(match[2]) - 1)),
            ]
        ),
        module_path=torchvision_path,
    )


VARIANTS = {
    "regnet_y_400mf": Variant((1, 3, 6, 6), (48, 104, 208, 440), 8),
    "regnet_y_800mf": Variant((1, 3, 8, 2), (64, 144, 320, 784), 16),
    "regnet_y_1_6gf": Variant((2, 6, 17, 2), (48, 120, 336, 888), 24),
    "regnet_y_3_2gf": Variant((2, 5, 13, 1), (72, 216, 576, 1512), 24),
    "regnet_y_8gf": Variant((2, 4, 10, 1), (224, 448, 896, 2016), 56),
    "regnet_y_16gf": Variant((2, 4, 11, 1), (224, 448, 1232, 3024), 112),
    "regnet_y_32gf": Variant((2, 5, 12, 1), (232, 696, 1392, 3712), 232),
}
ARCHITECTURES = {name: architecture(name, variant) for name, variant in VARIANTS.items()}
