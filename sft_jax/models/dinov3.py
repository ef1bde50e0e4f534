"""DINOv3's plain vision transformers (Simeoni et al., 2025, arXiv:2508.10104), as in timm.

Their weights have no head. As timm does by default, the head sees the mean of the normalised patches. Queries and
values have biases in the networks called `_qkvb`, and none in the others, for weights whose biases all are 0.
"""

import dataclasses
from collections.abc import Iterator

from sft_jax.models.architecture import Architecture, Pretrained, Rule
from sft_jax.models.positions import Positions
from sft_jax.models.vit import RULES, SIZES, Variant, timm

PATCH = 16
BIASED = "_qkvb"
PRETRAINED = Pretrained(256, 256, "bicubic")


def architecture(name: str, variant: Variant, pretrained: Pretrained = PRETRAINED) -> Architecture:
    """Describes a network of the family."""
    own = (
        Rule(r"(blocks\.\d+)\.ls([12])\.gamma", r"\1.gamma_\2", (0,)),
        Rule(r"(blocks\.\d+\.attn\.[qv]_bias)", r"\1", (0,)),
    )
    return dataclasses.replace(
        timm(name, variant, pretrained, "DINOv3"),
        family="dinov3",
        rules=(*own, *RULES),
        positions=Positions(None, variant.patch, 0),
    )


def _variants() -> Iterator[tuple[str, Variant]]:
    for size in ("small", "base", "large"):
        shape = Variant(PATCH, *SIZES[size], 1e-5, 4, pool="patches", rotary=True, biases="", epsilon=1e-5)
        yield f"vit_{size}_patch16_dinov3", shape
        yield f"vit_{size}_patch16_dinov3{BIASED}", dataclasses.replace(shape, biases="qv")


VARIANTS = dict(_variants())
ARCHITECTURES = {name: architecture(name, variant) for name, variant in VARIANTS.items()}
