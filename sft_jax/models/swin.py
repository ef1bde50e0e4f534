"""Swin transformers (Liu et al., 2021, arXiv:2103.14030) and V2 (2021, arXiv:2111.09883), as in torchvision.

Attribute paths are timm's state_dict keys, except that of the head; `torchvision_path` maps them to torchvision's.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from sft_jax.models.architecture import Architecture, Pretrained, Rule, located_by
from sft_jax.models.block_network import StagedNetwork
from sft_jax.models.convnext_block import Patches
from sft_jax.models.layers import Linear
from sft_jax.models.stochastic_depth import branch_factors
from sft_jax.models.swin_block import EPSILON, Block, PatchMerging
from sft_jax.models.swin_v2_block import BlockV2, PatchMergingV2
from sft_jax.models.transformer import LayerNorm, normalised

PATCH = 4  # side of the patches that are embedded


@dataclasses.dataclass(frozen=True)
class Variant:
    """What distinguishes the networks.

    Attributes:
      blocks, heads: of the four stages.
      channels: of the first stage; each later one has twice as many.
      window: side of a window in tokens.
      second: whether it is V2.
    """

    blocks: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    channels: int
    window: int = 7
    second: bool = False


class Stage(nnx.Module):
    """Blocks, of which every second one is shifted, after a `PatchMerging` in all stages but the first."""

    def __init__(self, index: int, variant: Variant, *, dtype, rngs):
        channels = variant.channels * 2**index
        merging = PatchMergingV2 if variant.second else PatchMerging
        self.downsample = merging(channels // 2, dtype=dtype, rngs=rngs) if index else None
        kind = BlockV2 if variant.second else Block
        block = functools.partial(kind, channels, variant.heads[index], variant.window, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([block(shifted=number % 2 == 1) for number in range(variant.blocks[index])])


class Swin(StagedNetwork):
    """A Swin transformer: patches, four stages of blocks, layer normalisation, global average pooling, linear head.

    Images may have any size. Parameters, the residual stream, normalisations, the head and the logits are float32;
    matrix products are in `dtype`.

    Args:
      variant: a value of `VARIANTS`.
      num_classes: outputs of the head.
      stem: unused; there is only one.
      dtype: of the operands of matrix products.
      axis_name: the mapped axis of the devices, over which random draws are split.
      stochastic_depth: drop rate of both branches of the last block in training; it grows linearly from 0 in the first.
      shifts_lone: see `WindowAttention`.
      rngs: `nnx.Rngs(params=seed)` for the initial weights.
    """

    def __init__(
        self,
        variant: Variant,
        num_classes: int,
        *,
        stem: str = "imagenet",
        dtype: jax.typing.DTypeLike = jnp.float32,
        axis_name: str | None = None,
        stochastic_depth: float = 0.0,
        shifts_lone: bool = False,
        rngs: nnx.Rngs,
    ):
        self.axis_name, self.stochastic_depth = axis_name, stochastic_depth
        channels = variant.channels
        self.patch_embed = nnx.Dict(
            proj=Patches(3, channels, PATCH, dtype=dtype, rngs=rngs), norm=LayerNorm(channels, epsilon=EPSILON)
        )
        self.layers = nnx.List([Stage(index, variant, dtype=dtype, rngs=rngs) for index in range(len(variant.blocks))])
        for block in (block for stage in self.layers for block in stage.blocks):
            block.attn.shifts_lone = shifts_lone
        self.norm = LayerNorm(channels * 8, epsilon=EPSILON)
        self.head = Linear(channels * 8, num_classes, rngs=rngs)

    def pool(self, last: jax.Array) -> jax.Array:
        """Maps the last of `Features.maps` to `Features.pooled`."""
        return normalised(self.norm, last).mean((1, 2))

    def stages(self, x: jax.Array, *, key: jax.Array | None = None) -> Iterator[tuple[str, jax.Array]]:
        """Yields (name, activations [batch, height, width, channels]) after the patches, reductions and blocks."""
        x = normalised(self.patch_embed["norm"], self.patch_embed["proj"](x))
        yield "patch_embed", x
        position, last = 0, sum(len(stage.blocks) for stage in self.layers) - 1
        for index, stage in enumerate(self.layers):
            if stage.downsample is not None:
                x = stage.downsample(x)
                yield f"layers.{index}.downsample", x
            for number, block in enumerate(stage.blocks):
                rate = self.stochastic_depth * position / last
                factors = branch_factors(key, rate, position, x.shape[0], self.axis_name)
                x = self.run_block(block, x, factors=factors)
                position += 1
                yield f"layers.{index}.blocks.{number}", x


_TORCHVISION = {"proj": "0", "norm": "2", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3"}


def torchvision_path(path: str) -> str:
    """Returns torchvision's path of a module."""
    if match := re.fullmatch(r"patch_embed\.(proj|norm)", path):
        return f"features.0.{_TORCHVISION[match[1]]}"
    if match := re.fullmatch(r"layers\.(\d)\.downsample\.(.+)", path):
        return f"features.{2 * int(match[1])}.{match[2]}"
    if match := re.fullmatch(r"layers\.(\d)\.blocks\.(\d+)\.(.+)", path):
        return f"features.{2 * int(match[1]) + 1}.{match[2]}.{_TORCHVISION.get(match[3], match[3])}"
    return path


def architecture(name: str, variant: Variant, resize: int = 256) -> Architecture:
    """Describes the network `name` of the family; its weights' images have `resize` pixels before the crop."""
    # Each with its axes.
    kept = {"attn.relative_position_bias_table": (0, 1), "attn.logit_scale": (0, 1, 2)}
    return Architecture(
        name=name,
        family="swin",
        make=functools.partial(Swin, variant),
        head="head",
        channels=tuple(variant.channels * 2**stage for stage in range(4)),
        strides=(4, 8, 16, 32),
        locate=located_by(
            [
                (r"patch_embed\.", lambda match: (0, 0)),
                (r"layers\.(\d)\.blocks\.(\d+)\.", lambda match: (int(match[1]) + 1, int(match[2]))),
                (r"layers\.(\d)\.downsample\.", lambda match: (int(match[1]) + 1, 0)),
                (r"norm\.", lambda match: (4, variant.blocks[-1] - 1)),  # with the last block
            ]
        ),
        map_epsilon=EPSILON,
        pretrained=Pretrained(256 if variant.second else 224, resize, "bicubic"),
        module_path=torchvision_path,
        rules=tuple(
            Rule(rf"layers\.{stage}\.blocks\.(\d+)\.{name}", rf"features.{2 * stage + 1}.\1.{name}", axes)
            for stage in range(4)
            for name, axes in kept.items()
        ),
    )


VARIANTS = {
    "swin_t": Variant((2, 2, 6, 2), (3, 6, 12, 24), 96),
    "swin_s": Variant((2, 2, 18, 2), (3, 6, 12, 24), 96),
    "swin_b": Variant((2, 2, 18, 2), (4, 8, 16, 32), 128),
}
VARIANTS |= {
    name.replace("swin_", "swin_v2_"): dataclasses.replace(variant, window=8, second=True)
    for name, variant in VARIANTS.items()
}
_RESIZE = {"swin_t": 232, "swin_s": 246, "swin_b": 238, "swin_v2_t": 260, "swin_v2_s": 260, "swin_v2_b": 272}
ARCHITECTURES = {name: architecture(name, variant, _RESIZE[name]) for name, variant in VARIANTS.items()}
