"""Residual networks (He et al., 2015, arXiv:1512.03385) as in `torchvision.models.resnet` and `timm.models.resnet`.

They include ResNet-18 to 152, wide ResNet and ResNeXt, with torchvision's state_dict keys as attribute paths, and
ResNet-D (He et al., 2018, arXiv:1812.01187) with timm's; only the leaves have JAX's names (`kernel`, `scale`, `bias`,
`mean`, `var`).
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sft_jax import ops
from sft_jax.models.architecture import Architecture, Pretrained, located_by
from sft_jax.models.block_network import PositionsFirstNetwork
from sft_jax.models.layers import BatchNorm2d, Conv2d, Linear
from sft_jax.models.residual_block import BasicBlock, Bottleneck, Spread, Variant
from sft_jax.models.stochastic_depth import skip_factor

VARIANTS = {
    "resnet18": Variant(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Variant(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Variant(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Variant(Bottleneck, (3, 4, 23, 3)),
    "resnet152": Variant(Bottleneck, (3, 8, 36, 3)),
    "resnext50_32x4d": Variant(Bottleneck, (3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": Variant(Bottleneck, (3, 4, 23, 3), groups=32, width_per_group=8),
    "resnext101_64x4d": Variant(Bottleneck, (3, 4, 23, 3), groups=64, width_per_group=4),
    "wide_resnet50_2": Variant(Bottleneck, (3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": Variant(Bottleneck, (3, 4, 23, 3), width_per_group=128),
    "resnet18d": Variant(BasicBlock, (2, 2, 2, 2), deep=True),
    "resnet34d": Variant(BasicBlock, (3, 4, 6, 3), deep=True),
    "resnet50d": Variant(Bottleneck, (3, 4, 6, 3), deep=True),
    "resnet101d": Variant(Bottleneck, (3, 4, 23, 3), deep=True),
    "resnet152d": Variant(Bottleneck, (3, 8, 36, 3), deep=True),
}


@dataclasses.dataclass(frozen=True)
class Stem:
    """A `size` x `size` convolution with `stride`, optionally followed by a max-pool of stride 2."""

    size: int
    stride: int
    pool: bool


STEMS = {"imagenet": Stem(7, 2, pool=True), "cifar": Stem(7, 1, pool=False), "cifar3x3": Stem(3, 1, pool=False)}
DEEP_STEM = 32  # channels of ResNet-D's first two convolutions


def _deep_stem(*, dtype, axis_name, rngs) -> nnx.List:
    """Makes ResNet-D's stem `conv1`: three 3x3 convolutions, with a norm after the first two.

    None stands for the parameterless activations, which are numbered in timm too.
    """
    conv = functools.partial(Conv2d, size=3, padding=1, dtype=dtype, rngs=rngs)
    norms = [BatchNorm2d(DEEP_STEM, axis_name=axis_name) for _ in range(2)]
    first, second, third = conv(3, DEEP_STEM, stride=2), conv(DEEP_STEM, DEEP_STEM), conv(DEEP_STEM, 64)
    return nnx.List([first, norms[0], None, second, norms[1], None, third])


class ResNet(PositionsFirstNetwork):
    """A residual network: stem, four stages of blocks, global average pooling, linear head.

    Parameters are float32; activations and matrix products are in `dtype`. Batch-norm statistics, the pooling, the head
    and the logits are float32, because bfloat16 with its 8 bits makes different logits equal.

    Args:
      variant: a value of `VARIANTS`.
      num_classes: outputs of the head `fc`.
      stem: a key of `STEMS`: "imagenet" (7x7 convolution with stride 2, then a max-pool with stride 2) or, for images
        of about 32 pixels, "cifar" (7x7 convolution with stride 1, which fits pretrained kernels, and no max-pool) or
        "cifar3x3" (a 3x3 convolution instead, as is usual on CIFAR). ResNet-D has only "imagenet".
      dtype: dtype of the computation.
      axis_name: the mapped axis over which batch norm's statistics are averaged in training.
      stochastic_depth: drop rate of the last block in training; it increases linearly from block to block.
      output_stride: stride of the last map: 32, or 16 or 8, where the last stage or two have dilated convolutions
        instead of a stride, as with torchvision's replace_stride_with_dilation and timm's output_stride.
      rngs: `nnx.Rngs(params=seed)` for the initial weights, which have torchvision's distributions.
    """

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
        output_stride: int = 32,
        rngs: nnx.Rngs,
    ):
        self.stem, self.dtype, self.axis_name, self.stochastic_depth = stem, dtype, axis_name, stochastic_depth
        size, stride = STEMS[stem].size, STEMS[stem].stride
        self.conv1: Any  # one convolution, or layers
        if variant.deep:
            self.conv1 = _deep_stem(dtype=dtype, axis_name=axis_name, rngs=rngs)
        else:
            self.conv1 = Conv2d(3, 64, size, stride=stride, padding=size // 2, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm2d(64, axis_name=axis_name)
        channels, reached, dilation = 64, 4, 1
        for stage, count in enumerate(variant.layers):
            planes, blocks = 64 * 2**stage, []
            stride, before = 2 if stage else 1, dilation
            if reached * stride > output_stride:
                stride, dilation = 1, 2 * dilation
            reached *= stride
            for index in range(count):
                spread = Spread(1, dilation, dilation) if index else Spread(stride, before, dilation)
                blocks.append(
                    variant.block(channels, planes, spread, variant, dtype=dtype, axis_name=axis_name, rngs=rngs)
                )
                channels = planes * variant.block.expansion
            setattr(self, f"layer{stage + 1}", nnx.List(blocks))
        self.fc = Linear(channels, num_classes, rngs=rngs)

    def _stages(self, x: jax.Array, *, train: bool, key: jax.Array | None = None) -> Iterator[tuple[str, jax.Array]]:
        """Yields as `stages`, but activations [height, width, batch, channels], for which `ops.conv2d` is fast."""
        x = self.bn1(self._first(x.astype(self.dtype), train=train), train=train, relu=True)
        if STEMS[self.stem].pool:
            x = ops.max_pool(x, window=3, stride=2, padding=1)
        x = x.transpose(1, 2, 0, 3)
        yield "stem", x
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        blocks = [
            (f"layer{stage}.{index}", block)
            for stage, row in enumerate(stages, start=1)
            for index, block in enumerate(row)
        ]
        for position, (name, block) in enumerate(blocks, start=1):
            rate = self.stochastic_depth * position / len(blocks)
            factor = skip_factor(key, rate, position, x.shape[2], self.axis_name)
            x = self.run_block(block, x, train=train, factor=factor)
            yield name, x

    def _first(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Applies `conv1` to x [batch, height, width, 3]."""
        if isinstance(self.conv1, Conv2d):
            return self.conv1(x, layout="NHWC")
        first, norm, _, *others, last = self.conv1
        x = norm(first(x, layout="NHWC"), train=train, relu=True).transpose(1, 2, 0, 3)
        second, norm, _ = others
        return last(norm(second(x), train=train, relu=True)).transpose(2, 0, 1, 3)


_locate = located_by(
    [
        (r"(conv1|bn1)\.", lambda match: (0, 0)),
        (r"layer([1-4])\.(\d+)\.", lambda match: (int(match[1]), int(match[2]))),
    ]
)


def architecture(name: str, variant: Variant) -> Architecture:
    """Describes the network `name` of the family."""
    stages = [stage for stage, blocks in enumerate(variant.layers) if blocks]
    found = Architecture(
        name=name,
        family="resnet",
        make=functools.partial(ResNet, variant),
        head="fc",
        channels=tuple(64 * 2**stage * variant.block.expansion for stage in stages),
        strides=tuple(4 * 2**stage for stage in stages),  # for the stem "imagenet"
        locate=_locate,
        stems=tuple((stem, "conv1", STEMS[stem].size) for stem in STEMS),
        dilates=not variant.deep,
        # The only one whose first weights were trained by torchvision's newer recipe.
        pretrained=Pretrained(resize=232) if name == "resnext101_64x4d" else Pretrained(),
    )
    if not variant.deep:
        return found
    return dataclasses.replace(
        found,
        stems=(("imagenet", "conv1.0", 3),),
        pretrained=Pretrained(interpolation="bicubic"),
        pretrained_by="timm's gluon_in1k",
        reference="timm",
    )


ARCHITECTURES = {name: architecture(name, variant) for name, variant in VARIANTS.items()}
