"""Mix Transformers, the encoders of SegFormer (Xie et al., 2021, arXiv:2105.15203): transformers' `Segformer*`.

Paths are those of the published files (`nvidia/mit-b0`) without `segformer.encoder.`, where `transformers_path` adds
it. Epsilons are transformers'; the original has 1e-6 in the norms of blocks and of stages.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sft_jax.models.architecture import Architecture, Features, Pretrained, located_by
from sft_jax.models.block_network import BlockNetwork
from sft_jax.models.layers import Linear
from sft_jax.models.mit_block import EPSILON, Block, OverlapPatches
from sft_jax.models.stochastic_depth import branch_factors
from sft_jax.models.transformer import LayerNorm, normalised

# Of the four stages: side and stride of the patches, heads of the attention, and the side of the squares of positions
# that are reduced to one key and value.
PATCHES, STRIDES, HEADS, REDUCTIONS = (7, 3, 3, 3), (4, 2, 2, 2), (1, 2, 5, 8), (8, 4, 2, 1)


@dataclasses.dataclass(frozen=True)
class Variant:
    """What distinguishes the networks.

    Attributes:
      blocks, channels: of the four stages.
      decoder: channels of the published networks' `dense_heads.SegformerHead`.
    """

    blocks: tuple[int, int, int, int]
    channels: tuple[int, int, int, int] = (64, 128, 320, 512)
    decoder: int = 768


class MixTransformer(BlockNetwork):
    """Four stages of overlapping patches, blocks and layer normalisation; mean of the last map; linear head.

    Parameters, the residual stream, normalisations, the head and the logits are float32; convolutions and matrix
    products are in `dtype`.

    Args:
      variant: a value of `VARIANTS`.
      num_classes: outputs of the head.
      stem: unused; there is only one.
      dtype: of the operands of convolutions and matrix products.
      axis_name: the mapped axis of the devices, over which random draws are split.
      stochastic_depth: drop rate of both branches of the last block in training; it grows linearly from 0 in the first.
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
        rngs: nnx.Rngs,
    ):
        self.axis_name, self.stochastic_depth = axis_name, stochastic_depth
        settings: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        channels = variant.channels
        sizes = zip((3, *channels[:-1]), channels, PATCHES, STRIDES, strict=True)
        self.patch_embeddings = nnx.List([OverlapPatches(*size, **settings) for size in sizes])
        self.block = nnx.List(
            [
                nnx.List([Block(width, heads, reduction, **settings) for _ in range(blocks)])
                for width, heads, reduction, blocks in zip(channels, HEADS, REDUCTIONS, variant.blocks, strict=True)
            ]
        )
        self.layer_norm = nnx.List([LayerNorm(width, epsilon=EPSILON) for width in channels])
        self.classifier = Linear(channels[-1], num_classes, rngs=rngs)

    def features(self, x: jax.Array, *, train: bool = False, key: jax.Array | None = None) -> Features:
        """Maps normalised images [batch, height, width, 3] to `Features`."""
        stages = dict(self.stages(x, key=key))
        maps = tuple(stages[f"layer_norm.{index}"] for index in range(len(self.layer_norm)))
        return Features(self.pool(maps[-1]), maps)

    def pool(self, last: jax.Array) -> jax.Array:
        """Maps the last of `Features.maps` to `Features.pooled`."""
        return last.mean((1, 2))

    def head(self, features: jax.Array) -> jax.Array:
        """Maps features [batch, channels] to logits [batch, num_classes]."""
        return self.classifier(features)

    def stages(self, x: jax.Array, *, key: jax.Array | None = None) -> Iterator[tuple[str, jax.Array]]:
        """Yields (name, activations [batch, height, width, channels]) after the patches, blocks and norms."""
        position, last = 0, sum(len(blocks) for blocks in self.block) - 1
        for stage, (patches, blocks, norm) in enumerate(
            zip(self.patch_embeddings, self.block, self.layer_norm, strict=True)
        ):
            x = patches(x)
            yield f"patch_embeddings.{stage}", x
            for index, block in enumerate(blocks):
                rate = self.stochastic_depth * position / last
                factors = branch_factors(key, rate, position, x.shape[0], self.axis_name)
                x = self.run_block(block, x, factors=factors)
                position += 1
                yield f"block.{stage}.{index}", x
            x = normalised(norm, x)
            yield f"layer_norm.{stage}", x


# Beginnings of paths in published files: of the encoder, and of the head of `segformer_mit_*`.
ENCODER, DECODER = "segformer.encoder.", "decode_head."
_PARTS = {"query": "self.query", "key": "self.key", "value": "self.value", "sr": "self.sr",
          "layer_norm": "self.layer_norm", "output": "output.dense"}  # fmt: skip


def transformers_path(path: str) -> str:
    """Returns the published files' path of a module."""
    if path == "classifier":
        return path
    if match := re.fullmatch(r"(block\.\d\.\d+\.attention)\.(\w+)", path):
        path = f"{match[1]}.{_PARTS[match[2]]}"
    return ENCODER + re.sub(r"\.dwconv$", ".dwconv.dwconv", path)


def dense_path(path: str) -> str:
    """Returns the published files' path of a module of `segformer_mit_*`."""
    part, _, own = path.partition(".")
    return transformers_path(own) if part == "backbone" else DECODER + own


def architecture(name: str, variant: Variant) -> Architecture:
    """Describes the network `name` of the family."""
    return Architecture(
        name=name,
        family="mit",
        make=functools.partial(MixTransformer, variant),
        head="classifier",
        channels=variant.channels,
        strides=(4, 8, 16, 32),
        locate=located_by(
            [
                (r"patch_embeddings\.0\.", lambda match: (0, 0)),
                (r"patch_embeddings\.(\d)\.", lambda match: (int(match[1]) + 1, 0)),
                (r"block\.(\d)\.(\d+)\.", lambda match: (int(match[1]) + 1, int(match[2]))),
                # With the last block of its stage.
                (r"layer_norm\.(\d)\.", lambda match: (int(match[1]) + 1, variant.blocks[int(match[1])] - 1)),
            ]
        ),
        pretrained=Pretrained(224, 224),
        pretrained_by="SegFormer's image processor",
        reference="transformers",
        module_path=transformers_path,
        smallest=29,  # whose first map has 8 x 8 positions, a square that is reduced
    )


VARIANTS = {
    "mit_b0": Variant((2, 2, 2, 2), (32, 64, 160, 256), 256),
    "mit_b1": Variant((2, 2, 2, 2), decoder=256),
    "mit_b2": Variant((3, 4, 6, 3)),
    "mit_b3": Variant((3, 4, 18, 3)),
    "mit_b4": Variant((3, 8, 27, 3)),
    "mit_b5": Variant((3, 6, 40, 3)),
}
ARCHITECTURES = {name: architecture(name, variant) for name, variant in VARIANTS.items()}
