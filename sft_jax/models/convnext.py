"""ConvNeXt (Liu et al., 2022, arXiv:2201.03545) and ConvNeXt V2 (Woo et al., 2023, arXiv:2301.00808).

`convnext_tiny` to `convnext_large` are torchvision's, `convnextv2_*` are timm's. Paths within blocks are timm's for all
of them; `torchvision_path` and `timm_path` map whole paths.
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
from sft_jax.models.convnext_block import Block, Patches
from sft_jax.models.layers import Linear
from sft_jax.models.stochastic_depth import skip_factor
from sft_jax.models.transformer import LayerNorm, normalised

PATCH = 4  # side of the stem's patches


@dataclasses.dataclass(frozen=True)
class Variant:
    """What distinguishes the networks.

    Attributes:
      blocks, channels: of the four stages.
      response_norm: whether blocks have V2's global response normalisation instead of V1's layer scale.
      as_convolutions: whether the reference's linear layers are 1x1 convolutions, which shapes their kernels.
    """

    blocks: tuple[int, int, int, int]
    channels: tuple[int, int, int, int]
    response_norm: bool = False
    as_convolutions: bool = False


class Stage(nnx.Module):
    """Blocks, after layer normalisation and a 2x2 convolution of stride 2 in all stages but the first."""

    def __init__(self, inputs: int, channels: int, blocks: int, variant: Variant, *, dtype, rngs):
        if inputs == channels:
            self.downsample = None
        else:
            reduction = Patches(inputs, channels, 2, dtype=dtype, rngs=rngs)
            self.downsample = nnx.List([LayerNorm(inputs), reduction])
        block = functools.partial(
            Block, channels, response_norm=variant.response_norm, as_convolutions=variant.as_convolutions
        )
        self.blocks = nnx.List([block(dtype=dtype, rngs=rngs) for _ in range(blocks)])


class ConvNeXt(StagedNetwork):
    """A ConvNeXt: stem, four stages of blocks, global average pooling, layer normalisation, linear head.

    Parameters, the residual stream, normalisations, the head and the logits are float32; convolutions and matrix
    products are in `dtype`.

    Args:
      variant: a value of `VARIANTS`.
      num_classes: outputs of the head.
      stem: unused; there is only one.
      dtype: of the operands of convolutions and matrix products.
      axis_name: the mapped axis of the devices, over which random draws are split.
      stochastic_depth: drop rate of the last block in training; it grows linearly from 0 in the first.
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
        first, *_, last = variant.channels
        self.stem = nnx.List([Patches(3, first, PATCH, dtype=dtype, rngs=rngs), LayerNorm(first)])
        sizes = zip((first, *variant.channels[:-1]), variant.channels, variant.blocks, strict=True)
        self.trunk = nnx.List([Stage(*size, variant, dtype=dtype, rngs=rngs) for size in sizes])
        self.norm = LayerNorm(last)
        self.fc = Linear(last, num_classes, rngs=rngs)

    def pool(self, last: jax.Array) -> jax.Array:
        """Maps the last of `Features.maps` to `Features.pooled`."""
        return self.norm(last.mean((1, 2)))

    def head(self, features: jax.Array) -> jax.Array:
        """Maps features [batch, channels] to logits [batch, num_classes]."""
        return self.fc(features)

    def stages(self, x: jax.Array, *, key: jax.Array | None = None) -> Iterator[tuple[str, jax.Array]]:
        """Yields (name, activations [batch, height, width, channels]) after the stem, reductions and blocks."""
        convolution, norm = self.stem
        x = normalised(norm, convolution(x))
        yield "stem", x
        position, last = 0, sum(len(stage.blocks) for stage in self.trunk) - 1
        for index, stage in enumerate(self.trunk):
            if stage.downsample is not None:
                norm, reduction = stage.downsample
                x = reduction(normalised(norm, x)).astype(x.dtype)
                yield f"trunk.{index}.downsample", x
            for number, block in enumerate(stage.blocks):
                rate = self.stochastic_depth * position / last
                factor = skip_factor(key, rate, position, x.shape[0], self.axis_name)
                x = self.run_block(block, x, factor=factor)
                position += 1
                yield f"trunk.{index}.blocks.{number}", x


_TORCHVISION_BLOCK = {"conv_dw": "block.0", "norm": "block.2", "mlp.fc1": "block.3", "mlp.fc2": "block.5"}


def torchvision_path(path: str) -> str:
    """Returns torchvision's path of a module."""
    if match := re.fullmatch(r"trunk\.(\d)\.(?:blocks\.(\d+)\.(.+)|downsample\.([01]))", path):
        stage, block, module, reduction = match.groups()
        if block is None:
            return f"features.{2 * int(stage)}.{reduction}"
        return f"features.{2 * int(stage) + 1}.{block}.{_TORCHVISION_BLOCK[module]}"
    return re.sub(r"^stem\.", "features.0.", {"norm": "classifier.0", "fc": "classifier.2"}.get(path, path))


def timm_path(path: str) -> str:
    """Returns timm's path of a module."""
    return f"head.{path}" if path in ("norm", "fc") else re.sub(r"^trunk\.", "stages.", path)


def architecture(name: str, variant: Variant, pretrained: Pretrained, weights: str) -> Architecture:
    """Describes a network of the family; `weights` names those that `pretrained` belongs to."""
    return Architecture(
        name=name,
        family="convnext",
        make=functools.partial(ConvNeXt, variant),
        head="fc",
        channels=variant.channels,
        strides=(4, 8, 16, 32),
        smallest=32,
        map_epsilon=1e-6,
        locate=located_by(
            [
                (r"stem\.", lambda match: (0, 0)),
                (r"trunk\.(\d)\.blocks\.(\d+)\.", lambda match: (int(match[1]) + 1, int(match[2]))),
                (r"trunk\.(\d)\.downsample\.", lambda match: (int(match[1]) + 1, 0)),
                (r"norm\.", lambda match: (4, variant.blocks[-1] - 1)),  # with the last block
            ]
        ),
        pretrained=pretrained,
        reference="timm" if variant.response_norm else "torchvision",
        module_path=timm_path if variant.response_norm else torchvision_path,
        rules=tuple(
            Rule(rf"trunk\.{stage}\.blocks\.(\d+)\.gamma", rf"features.{2 * stage + 1}.\1.layer_scale", (1, 2, 0))
            for stage in range(4)
        ),
        pretrained_by=weights,
    )


_V2 = functools.partial(Variant, response_norm=True)
VARIANTS = {
    "convnext_tiny": Variant((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": Variant((3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_base": Variant((3, 3, 27, 3), (128, 256, 512, 1024)),
    "convnext_large": Variant((3, 3, 27, 3), (192, 384, 768, 1536)),
    "convnextv2_atto": _V2((2, 2, 6, 2), (40, 80, 160, 320), as_convolutions=True),
    "convnextv2_nano": _V2((2, 2, 8, 2), (80, 160, 320, 640), as_convolutions=True),
    "convnextv2_tiny": _V2((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnextv2_base": _V2((3, 3, 27, 3), (128, 256, 512, 1024)),
}
# Shorter side of torchvision's images before the crop; 232 for the others.
_RESIZE = {"convnext_tiny": 236, "convnext_small": 230}


def _architecture(name: str, variant: Variant) -> Architecture:
    if variant.response_norm:
        weights = "fcmae_ft_in1k" if name == "convnextv2_atto" else "fcmae_ft_in22k_in1k"
        return architecture(name, variant, Pretrained(interpolation="bicubic"), f"timm's {weights}")
    return architecture(name, variant, Pretrained(resize=_RESIZE.get(name, 232)), "torchvision's IMAGENET1K_V1")


ARCHITECTURES = {name: _architecture(name, variant) for name, variant in VARIANTS.items()}
