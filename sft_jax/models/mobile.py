"""What mobile networks have in common: a stem, stages of blocks, and a last convolution before the head.

The attribute names are those of timm's EfficientNet and MobileNetV3. Activations are [batch, height, width, channels].
"""

import dataclasses
import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from flax import nnx

from sft_jax.models.architecture import Features, located_by
from sft_jax.models.block_network import BlockNetwork
from sft_jax.models.inverted_residual import Activation, Block, ConvNorm, Kind, Style, same_conv
from sft_jax.models.layers import BatchNorm2d, Linear
from sft_jax.models.stochastic_depth import skip_factor
from sft_jax.models.universal_block import UniversalBlock


@dataclasses.dataclass(frozen=True)
class Row:
    """A block.

    Attributes:
      kind: see `inverted_residual.LAYERS`; "universal" for `UniversalBlock`.
      size: side of its kernels that are larger than 1x1; of a universal block, of the depthwise one in the middle.
      stride: in pixels.
      inner: channels between its layers.
      outputs: channels of its output.
      squeeze: whether it has squeeze-and-excitation if the network's `Style` has it.
      activation: the network's if None.
      start: of a universal block, side of the first depthwise kernel.
      shortcut: whether it has a shortcut if it changes neither size nor channels.
      dilation: of its kernels that are larger than 1x1.
    """

    kind: Kind
    size: int
    stride: int
    inner: int
    outputs: int
    squeeze: bool = True
    activation: Activation | None = None
    start: int = 0
    shortcut: bool = True
    dilation: int = 1


Rows = tuple[tuple[Row, ...], ...]


def make_block(row: Row, inputs: int, style: Style, **settings: Any) -> nnx.Module:
    """Makes the block that `row` describes."""
    own = dataclasses.replace(
        style,
        activation=row.activation or style.activation,
        squeeze=style.squeeze if row.squeeze else None,
    )
    sizes: dict[str, int] = {"size": row.size, "stride": row.stride, "inner": row.inner}
    if row.kind == "universal":
        assert row.dilation == 1
        return UniversalBlock(inputs, row.outputs, start=row.start, **sizes, style=own, **settings)
    sizes["dilation"] = row.dilation
    return Block(row.kind, inputs, row.outputs, shortcut=row.shortcut, **sizes, style=own, **settings)


class MobileNetwork(ConvNorm, BlockNetwork):
    """Stem and stages of blocks; subclasses add the last convolution, which yields the features, and `classifier`.

    Parameters are float32; activations and matrix products are in `dtype`. Batch-norm statistics, the pooling, the head
    and the logits are float32.

    Attributes:
      eighth, eighth_channels: see `eighth_of`.

    Args:
      stem: channels of the stem.
      rows: the blocks of each stage.
      style: see `Style`.
      dtype: dtype of the computation.
      axis_name: the mapped axis over which batch norm's statistics are averaged in training.
      output_stride: stride of the last map: 32, or 16 or 8, see `dilated`.
      all_dilated: see `dilated`.
      stochastic_depth: drop rate that the block after the last would have in training; it increases linearly from 0
        for the first block, as in torchvision and timm. Only blocks with a shortcut are dropped.
      rngs: `nnx.Rngs(params=seed)` for the initial weights.
    """

    classifier: Linear

    def __init__(
        self,
        stem: int,
        rows: Rows,
        *,
        style: Style,
        dtype: jax.typing.DTypeLike,
        axis_name: str | None,
        stochastic_depth: float,
        output_stride: int = 32,
        all_dilated: bool = False,
        rngs: nnx.Rngs,
    ):
        rows = dilated(rows, output_stride, all_dilated=all_dilated)
        self.eighth, self.eighth_channels = eighth_of(rows)
        self.style, self.strides, self.dtype = style, stage_strides(rows), dtype
        self.axis_name, self.stochastic_depth = axis_name, stochastic_depth
        self.conv_stem = same_conv(3, stem, 3, 2, style, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm2d(stem, axis_name=axis_name, epsilon=style.epsilon)
        stages, channels = [], stem
        for stage in rows:
            blocks = []
            for row in stage:
                blocks.append(make_block(row, channels, style, dtype=dtype, axis_name=axis_name, rngs=rngs))
                channels = row.outputs
            stages.append(nnx.List(blocks))
        self.blocks = nnx.List(stages)

    def last(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps the last block's x to features, [batch, height, width, channels] or already pooled [batch, channels]."""
        raise NotImplementedError

    def features(self, x: jax.Array, *, train: bool = False, key: jax.Array | None = None) -> Features:
        """Maps normalised images [batch, height, width, 3] to `Features`; `pooled` has the parameters' dtype."""
        maps = self.maps(x, train=train, key=key)
        return Features(self._pooled(self.last(maps[-1], train=train)), maps)

    def maps(self, x: jax.Array, *, train: bool = False, key: jax.Array | None = None) -> tuple[jax.Array, ...]:
        """See `BlockNetwork`."""
        activations = dict(self.trunk(x, train=train, key=key))
        return tuple(activations[f"blocks.{end}.{len(self.blocks[end]) - 1}"] for end in map_stages(self.strides))

    def pool(self, last: jax.Array) -> jax.Array:
        """Maps the last of `Features.maps` to `Features.pooled`, in evaluation mode."""
        return self._pooled(self.last(last.astype(self.dtype), train=False))

    def _pooled(self, last: jax.Array) -> jax.Array:
        wide = self.classifier.kernel[...].dtype
        return last.astype(wide) if last.ndim == 2 else last.mean((1, 2), dtype=wide)

    def head(self, features: jax.Array) -> jax.Array:
        """Maps features [batch, channels] to logits [batch, num_classes]."""
        return self.classifier(features)

    def stages(
        self, x: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> Iterator[tuple[str, jax.Array]]:
        """Yields as `trunk`, then ("head", `last`)."""
        activations = x
        for name, activations in self.trunk(x, train=train, key=key):
            yield name, activations
        yield "head", self.last(activations, train=train)

    def trunk(
        self, x: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> Iterator[tuple[str, jax.Array]]:
        """Yields (name, activations [batch, height, width, channels]) after the stem and every block."""
        x = self.style.activation(self.convolve(self.conv_stem, self.bn1, x.astype(self.dtype), train=train))
        yield "stem", x
        blocks: list[tuple[str, Any]] = [
            (f"blocks.{stage}.{index}", block)
            for stage, row in enumerate(self.blocks)
            for index, block in enumerate(row)
        ]
        for position, (name, block) in enumerate(blocks):
            rate = self.stochastic_depth * position / len(blocks)
            factor = skip_factor(key, rate, position, x.shape[0], self.axis_name)
            x = self.run_block(block, x, train=train, factor=factor)
            yield name, x


def dilated(rows: Rows, output_stride: int, *, all_dilated: bool = False) -> Rows:
    """Returns rows whose last map has a stride of at most `output_stride`: strides beyond become dilations.

    The first block of such a stage has the dilation of the stage before, as in timm; with `all_dilated` it has that of
    the other blocks, as in torchvision's MobileNetV3.
    """
    reached, dilation = 2, 1
    found: list[tuple[Row, ...]] = []
    for stage, stride in zip(rows, stage_strides(rows), strict=True):
        before, kept = dilation, reached * stride <= output_stride
        reached, dilation = (reached * stride, dilation) if kept else (reached, dilation * stride)
        dilations = [dilation if all_dilated else before, *[dilation] * (len(stage) - 1)]
        found.append(
            tuple(
                dataclasses.replace(row, dilation=own, stride=row.stride if kept else 1)
                for row, own in zip(stage, dilations, strict=True)
            )
        )
    return tuple(found)


def stage_strides(rows: Sequence[Sequence[Row]]) -> tuple[int, ...]:
    """Returns the stride of each stage."""
    return tuple(math.prod(row.stride for row in stage) for stage in rows)


def eighth_of(rows: Rows) -> tuple[str, int]:
    """Returns the name of the first block whose output has a stride of 8, and its channels; ("", 0) without one."""
    reached = itertools.accumulate(stage_strides(rows), operator.mul, initial=2)
    stage = next((stage for stage, stride in enumerate(reached, start=-1) if stride == 8), None)
    return ("", 0) if stage is None else (f"blocks.{stage}.0", rows[stage][0].outputs)


def map_stages(strides: tuple[int, ...]) -> list[int]:
    """Returns the stages after which `Features.maps` are taken: the last ones of each size."""
    return [stage for stage in range(len(strides)) if stage + 1 == len(strides) or strides[stage + 1] > 1]


def map_shapes(rows: Rows) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the channels and the strides of `Features.maps`."""
    strides = stage_strides(rows)
    ends = map_stages(strides)
    return tuple(rows[end][-1].outputs for end in ends), tuple(2 * math.prod(strides[: end + 1]) for end in ends)


def located(stages: int):
    """Makes `Architecture.locate` for a network with so many stages: stem, stages and the last convolution."""
    return located_by(
        [
            (r"(conv_stem|bn1)\.", lambda match: (0, 0)),
            (r"blocks\.(\d+)\.(\d+)\.", lambda match: (int(match[1]) + 1, int(match[2]))),
            (r"(conv_head|bn2|norm_head)\.", lambda match: (stages + 1, 0)),
        ]
    )
