"""EfficientNet (Tan & Le, 2019, arXiv:1905.11946), EfficientNet-Lite and EfficientNetV2 (2021, arXiv:2104.00298).

`efficientnet_b0` to `b7` and `efficientnet_v2_s` to `l` are torchvision's; `efficientnet_lite0` to `lite4` and the
`tf_` networks, which have TensorFlow's padding and epsilon, are timm's. Attribute paths are timm's state_dict keys for
all of them; `_torchvision_path` maps them to torchvision's.
"""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
from flax import nnx

from sft_jax.models.architecture import Architecture, Pretrained
from sft_jax.models.inverted_residual import Kind, Squeeze, Style, relu6, rounded, same_conv
from sft_jax.models.layers import BatchNorm2d, Linear
from sft_jax.models.mobile import MobileNetwork, Row, Rows, located, map_shapes


@dataclasses.dataclass(frozen=True)
class Stage:
    """Blocks of the same kind; the first one has `stride`. See `Row` for the other attributes.

    `expansion` is the number of channels between a block's layers, as a multiple of its inputs.
    """

    kind: Kind
    expansion: int
    size: int
    stride: int
    channels: int
    blocks: int


@dataclasses.dataclass(frozen=True)
class Variant:
    """What distinguishes the networks: channels of the stem and of the pooled features, stages, and style."""

    stem: int
    stages: tuple[Stage, ...]
    features: int
    style: Style

    def rows(self) -> Rows:
        """Returns the blocks of each stage."""
        rows, channels = [], self.stem
        for stage in self.stages:
            blocks = []
            for index in range(stage.blocks):
                stride, inner = stage.stride if index == 0 else 1, channels * stage.expansion
                blocks.append(Row(stage.kind, stage.size, stride, inner, stage.channels))
                channels = stage.channels
            rows.append(tuple(blocks))
        return tuple(rows)


# kind, expansion, kernel size, stride, channels, blocks
_B = (
    Stage("separable", 1, 3, 1, 16, 1),
    Stage("inverted", 6, 3, 2, 24, 2),
    Stage("inverted", 6, 5, 2, 40, 2),
    Stage("inverted", 6, 3, 2, 80, 3),
    Stage("inverted", 6, 5, 1, 112, 3),
    Stage("inverted", 6, 5, 2, 192, 4),
    Stage("inverted", 6, 3, 1, 320, 1),
)
_V2 = {
    "s": (
        Stage("conv", 1, 3, 1, 24, 2),
        Stage("edge", 4, 3, 2, 48, 4),
        Stage("edge", 4, 3, 2, 64, 4),
        Stage("inverted", 4, 3, 2, 128, 6),
        Stage("inverted", 6, 3, 1, 160, 9),
        Stage("inverted", 6, 3, 2, 256, 15),
    ),
    "m": (
        Stage("conv", 1, 3, 1, 24, 3),
        Stage("edge", 4, 3, 2, 48, 5),
        Stage("edge", 4, 3, 2, 80, 5),
        Stage("inverted", 4, 3, 2, 160, 7),
        Stage("inverted", 6, 3, 1, 176, 14),
        Stage("inverted", 6, 3, 2, 304, 18),
        Stage("inverted", 6, 3, 1, 512, 5),
    ),
    "l": (
        Stage("conv", 1, 3, 1, 32, 4),
        Stage("edge", 4, 3, 2, 64, 7),
        Stage("edge", 4, 3, 2, 96, 7),
        Stage("inverted", 4, 3, 2, 192, 10),
        Stage("inverted", 6, 3, 1, 224, 19),
        Stage("inverted", 6, 3, 2, 384, 25),
        Stage("inverted", 6, 3, 1, 640, 7),
    ),
}
# Multipliers of channels and of blocks.
_SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2.0, 3.1))


def _scaled(width: float, depth: float, style: Style) -> Variant:
    stages = tuple(
        dataclasses.replace(stage, channels=rounded(stage.channels * width), blocks=math.ceil(stage.blocks * depth))
        for stage in _B
    )
    return Variant(rounded(32 * width), stages, rounded(1280 * width), style)


def _lite(width: float, depth: float, style: Style) -> Variant:
    """Scales as EfficientNet-Lite, which keeps the stem, the features and the blocks of the first and last stage."""
    scaled = _scaled(width, depth, style)
    first, *middle, last = scaled.stages
    ends = (dataclasses.replace(stage, blocks=1) for stage in (first, last))
    return Variant(32, (next(ends), *middle, next(ends)), 1280, style)


def _style(*, epsilon: float = 1e-5, same_padding: bool = False) -> Style:
    return Style(jax.nn.silu, Squeeze(), epsilon, same_padding)


_TF = _style(epsilon=1e-3, same_padding=True)
_LITE, _TF_LITE = (dataclasses.replace(style, activation=relu6, squeeze=None) for style in (_style(), _TF))
VARIANTS = (
    # torchvision's largest three have TensorFlow's epsilon.
    {f"efficientnet_b{n}": _scaled(*scale, _style(epsilon=1e-3 if n > 4 else 1e-5)) for n, scale in enumerate(_SCALES)}
    | {f"efficientnet_v2_{size}": Variant(s[0].channels, s, 1280, _style(epsilon=1e-3)) for size, s in _V2.items()}
    | {f"tf_efficientnet_b{n}": _scaled(*scale, _TF) for n, scale in enumerate(_SCALES)}
    | {f"tf_efficientnetv2_{size}": Variant(s[0].channels, s, 1280, _TF) for size, s in _V2.items()}
    | {f"efficientnet_lite{n}": _lite(*scale, _LITE) for n, scale in enumerate(_SCALES[:5])}
    | {f"tf_efficientnet_lite{n}": _lite(*scale, _TF_LITE) for n, scale in enumerate(_SCALES[:5])}
)


class EfficientNet(MobileNetwork):
    """Stem, stages of blocks, a 1x1 convolution, global average pooling, linear head.

    Args:
      variant: a value of `VARIANTS`.
      num_classes: outputs of the head `classifier`.
      stem: "imagenet", the only one.
      dtype, axis_name, stochastic_depth, output_stride, rngs: see `MobileNetwork`.
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
        output_stride: int = 32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            variant.stem,
            variant.rows(),
            style=variant.style,
            dtype=dtype,
            axis_name=axis_name,
            stochastic_depth=stochastic_depth,
            output_stride=output_stride,
            rngs=rngs,
        )
        channels = variant.stages[-1].channels
        self.conv_head = same_conv(channels, variant.features, 1, 1, variant.style, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm2d(variant.features, axis_name=axis_name, epsilon=variant.style.epsilon)
        self.classifier = Linear(variant.features, num_classes, rngs=rngs)

    def last(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps x [batch, height, width, channels] to [batch, height, width, features]."""
        return self.style.activation(self.convolve(self.conv_head, self.bn2, x, train=train))


_PATHS = {
    "separable": {
        "conv_dw": "0.0", "bn1": "0.1", "se.conv_reduce": "1.fc1", "se.conv_expand": "1.fc2",
        "conv_pw": "2.0", "bn2": "2.1",
    },
    "inverted": {
        "conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1",
        "se.conv_reduce": "2.fc1", "se.conv_expand": "2.fc2", "conv_pwl": "3.0", "bn3": "3.1",
    },
    "edge": {"conv_exp": "0.0", "bn1": "0.1", "conv_pwl": "1.0", "bn2": "1.1"},
    "conv": {"conv": "0.0", "bn1": "0.1"},
}  # fmt: skip


def torchvision_path(path: str, kinds: tuple[Kind, ...]) -> str:
    """Translates timm's path of a module to torchvision's.

    Args:
      path: e.g. "blocks.1.0.conv_dw".
      kinds: the kind of each stage.
    """
    last = len(kinds) + 1
    ends = {
        "conv_stem": "features.0.0", "bn1": "features.0.1", "conv_head": f"features.{last}.0",
        "bn2": f"features.{last}.1", "classifier": "classifier.1",
    }  # fmt: skip
    if match := re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(.+)", path):
        stage, module = int(match[1]), match[3]
        if stage < len(kinds) and module in _PATHS[kinds[stage]]:  # not of another network's file
            return f"features.{stage + 1}.{match[2]}.block.{_PATHS[kinds[stage]][module]}"
    return ends.get(path, path)


# Side, resized side and interpolation with which the published weights were evaluated, by size of the network; of
# several weights the first. From torchvision's `EfficientNet_*_Weights`, and timm's `default_cfgs` (side / crop_pct).
_TORCHVISION = {
    "b0": (224, 256, "bicubic"), "b1": (240, 256, "bicubic"), "b2": (288, 288, "bicubic"), "b3": (300, 320, "bicubic"),
    "b4": (380, 384, "bicubic"), "b5": (456, 456, "bicubic"), "b6": (528, 528, "bicubic"), "b7": (600, 600, "bicubic"),
    "s": (384, 384, "bilinear"), "m": (480, 480, "bilinear"), "l": (480, 480, "bicubic"),
}  # fmt: skip
_TIMM = {
    "b0": (224, 256, "bicubic"), "b1": (240, 272, "bicubic"), "b2": (260, 292, "bicubic"), "b3": (300, 331, "bicubic"),
    "b4": (380, 412, "bicubic"), "b5": (456, 488, "bicubic"), "b6": (528, 560, "bicubic"), "b7": (600, 632, "bicubic"),
    "s": (384, 384, "bicubic"), "m": (480, 480, "bicubic"), "l": (480, 480, "bicubic"),
    "lite0": (224, 256, "bicubic"), "lite1": (240, 272, "bicubic"), "lite2": (260, 292, "bicubic"),
    "lite3": (300, 331, "bilinear"), "lite4": (380, 413, "bilinear"),
}  # fmt: skip


def _pretrained(name: str) -> Pretrained:
    """Returns the usual preprocessing of a network's weights; TensorFlow's Lite and V2 scale pixels to -1..1."""
    size, resize, interpolation = (_TORCHVISION if _is_torchvisions(name) else _TIMM)[name.rpartition("_")[2]]
    usual = Pretrained(size, resize, interpolation)
    if name.startswith(("tf_efficientnet_lite", "tf_efficientnetv2")) or name == "efficientnet_v2_l":
        return dataclasses.replace(usual, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return usual


def _is_torchvisions(name: str) -> bool:
    return name.startswith(("efficientnet_b", "efficientnet_v2"))


def architecture(name: str, variant: Variant) -> Architecture:
    """Describes the network `name` of the family."""
    channels, strides = map_shapes(variant.rows())
    theirs = _is_torchvisions(name)
    kinds = tuple(stage.kind for stage in variant.stages)
    return Architecture(
        name=name,
        family="efficientnet",
        make=functools.partial(EfficientNet, variant),
        head="classifier",
        channels=channels,
        strides=strides,
        pooled=variant.features,
        dilates=True,
        locate=located(len(kinds)),
        pretrained=_pretrained(name),
        pretrained_by="torchvision's IMAGENET1K_V1" if theirs else f"timm's {name}",
        reference="torchvision" if theirs else "timm",
        module_path=functools.partial(torchvision_path, kinds=kinds) if theirs else lambda path: path,
    )


ARCHITECTURES = {name: architecture(name, variant) for name, variant in VARIANTS.items()}
