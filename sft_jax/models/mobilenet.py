"""MobileNetV3 (Howard et al., 2019, arXiv:1905.02244) and MobileNetV4 (Qin et al., 2024, arXiv:2404.10518).

`mobilenet_v3_small` and `mobilenet_v3_large` are torchvision's, all others timm's; `tf_` networks have TensorFlow's
padding. These three kinds of MobileNetV3 differ in the epsilon of batch norm or in padding, so that the weights of one
do not fit another. Running statistics keep 0.9 of their value in a step, as everywhere here; in torchvision's 0.99.
Attribute paths are timm's state_dict keys for all of them; `torchvision_path` maps them.
"""

import dataclasses
import functools
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from sft_jax.models.architecture import Architecture, Pretrained
from sft_jax.models.inverted_residual import Pointwise, Squeeze, Style, hard_sigmoid, hard_swish, rounded
from sft_jax.models.layers import BatchNorm2d, Conv2d, Linear
from sft_jax.models.mobile import MobileNetwork, Row, Rows, located, map_shapes

# The layer after the pooling: timm's 1x1 convolution with a bias (V3) or a norm (V4), torchvision's linear layer.
Last = Literal["convolution", "normed", "linear"]


@dataclasses.dataclass(frozen=True)
class Variant:
    """What distinguishes the networks.

    Attributes:
      stem: channels of the stem.
      rows: the blocks of each stage.
      features: channels of the features.
      last: see `Last`.
      style: activation, squeeze-and-excitation, epsilon, padding.
    """

    stem: int
    rows: Rows
    features: int
    last: Last
    style: Style


class MobileNet(MobileNetwork):
    """`timm.models.MobileNetV3`: stem, stages, global average pooling, one more layer, linear head.

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
            variant.rows,
            style=variant.style,
            dtype=dtype,
            axis_name=axis_name,
            stochastic_depth=stochastic_depth,
            output_stride=output_stride,
            all_dilated=variant.last == "linear",
            rngs=rngs,
        )
        channels, features = variant.rows[-1][-1].outputs, variant.features
        normed = variant.last == "normed"
        self.conv_head: Any
        if normed:
            self.conv_head = Conv2d(channels, features, 1, dtype=jnp.float32, rngs=rngs)
        else:
            self.conv_head = (Linear if variant.last == "linear" else Pointwise)(channels, features, rngs=rngs)
        norm = BatchNorm2d(features, axis_name=axis_name, epsilon=variant.style.epsilon)
        self.norm_head = norm if normed else None
        self.classifier = Linear(features, num_classes, rngs=rngs)

    def last(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps x [batch, height, width, channels] to features [batch, features] of the parameters' dtype."""
        pooled = x.mean((1, 2), dtype=self.classifier.kernel[...].dtype)
        if self.norm_head is None:
            return self.style.activation(self.conv_head(pooled))
        y = pooled @ self.conv_head.kernel[0, 0]
        return self.style.activation(self.norm_head(y, train=train))


def _relu(kind, size: int, stride: int, inner: int, outputs: int, squeeze: bool = False) -> Row:
    return Row(kind, size, stride, inner, outputs, squeeze, activation=jax.nn.relu)


def _swish(size: int, stride: int, inner: int, outputs: int, squeeze: bool = True) -> Row:
    return Row("inverted", size, stride, inner, outputs, squeeze)


def _conv(size: int, stride: int, outputs: int) -> Row:
    return Row("conv", size, stride, outputs, outputs, shortcut=False)


def _universal(start: int, size: int, stride: int, inner: int, outputs: int) -> Row:
    return Row("universal", size, stride, inner, outputs, start=start)


_V3_SMALL: Rows = (
    (_relu("separable", 3, 2, 16, 16, squeeze=True),),
    (_relu("inverted", 3, 2, 72, 24), _relu("inverted", 3, 1, 88, 24)),
    (_swish(5, 2, 96, 40), *2 * (_swish(5, 1, 240, 40),)),
    (_swish(5, 1, 120, 48), _swish(5, 1, 144, 48)),
    (_swish(5, 2, 288, 96), *2 * (_swish(5, 1, 576, 96),)),
    (_conv(1, 1, 576),),
)
_V3_LARGE: Rows = (
    (_relu("separable", 3, 1, 16, 16),),
    (_relu("inverted", 3, 2, 64, 24), _relu("inverted", 3, 1, 72, 24)),
    (_relu("inverted", 5, 2, 72, 40, squeeze=True), *2 * (_relu("inverted", 5, 1, 120, 40, squeeze=True),)),
    (_swish(3, 2, 240, 80, squeeze=False), _swish(3, 1, 200, 80, squeeze=False))
    + 2 * (_swish(3, 1, 184, 80, squeeze=False),),
    (_swish(3, 1, 480, 112), _swish(3, 1, 672, 112)),
    (_swish(5, 2, 672, 160), *2 * (_swish(5, 1, 960, 160),)),
    (_conv(1, 1, 960),),
)
_V4_SMALL: Rows = (
    (_conv(3, 2, 32), _conv(1, 1, 32)),
    (_conv(3, 2, 96), _conv(1, 1, 64)),
    (_universal(5, 5, 2, 192, 96), *4 * (_universal(0, 3, 1, 192, 96),), _universal(3, 0, 1, 384, 96)),
    (
        _universal(3, 3, 2, 576, 128),
        _universal(5, 5, 1, 512, 128),
        _universal(0, 5, 1, 512, 128),
        _universal(0, 5, 1, 384, 128),
        *2 * (_universal(0, 3, 1, 512, 128),),
    ),
    (_conv(1, 1, 960),),
)
_V4_MEDIUM: Rows = (
    (Row("edge", 3, 2, 128, 48),),
    (_universal(3, 5, 2, 192, 80), _universal(3, 3, 1, 160, 80)),
    (
        _universal(3, 5, 2, 480, 160),
        *2 * (_universal(3, 3, 1, 640, 160),),
        _universal(3, 5, 1, 640, 160),
        _universal(3, 3, 1, 640, 160),
        _universal(3, 0, 1, 640, 160),
        _universal(0, 0, 1, 320, 160),
        _universal(3, 0, 1, 640, 160),
    ),
    (
        _universal(5, 5, 2, 960, 256),
        _universal(5, 5, 1, 1024, 256),
        *2 * (_universal(3, 5, 1, 1024, 256),),
        _universal(0, 0, 1, 1024, 256),
        _universal(3, 0, 1, 1024, 256),
        _universal(3, 5, 1, 512, 256),
        _universal(5, 5, 1, 1024, 256),
        *2 * (_universal(0, 0, 1, 1024, 256),),
        _universal(5, 0, 1, 512, 256),
    ),
    (_conv(1, 1, 960),),
)


def quarter(inputs: int, channels: int) -> int:
    """Returns MobileNetV3's `Squeeze.channels`."""
    return rounded(channels / 4)


_V3 = Style(hard_swish, Squeeze(jax.nn.relu, hard_sigmoid, quarter), epsilon=1e-5, same_padding=False)
_TORCHVISION = dataclasses.replace(_V3, epsilon=1e-3)
_TF = dataclasses.replace(_TORCHVISION, same_padding=True)
_V4 = Style(jax.nn.relu, None, epsilon=1e-5, same_padding=False)
VARIANTS = {
    "mobilenet_v3_small": Variant(16, _V3_SMALL, 1024, "linear", _TORCHVISION),
    "mobilenet_v3_large": Variant(16, _V3_LARGE, 1280, "linear", _TORCHVISION),
    "mobilenetv3_small_100": Variant(16, _V3_SMALL, 1024, "convolution", _V3),
    "mobilenetv3_large_100": Variant(16, _V3_LARGE, 1280, "convolution", _V3),
    "tf_mobilenetv3_small_100": Variant(16, _V3_SMALL, 1024, "convolution", _TF),
    "tf_mobilenetv3_large_100": Variant(16, _V3_LARGE, 1280, "convolution", _TF),
    "mobilenetv4_conv_small": Variant(32, _V4_SMALL, 1280, "normed", _V4),
    "mobilenetv4_conv_medium": Variant(32, _V4_MEDIUM, 1280, "normed", _V4),
}


def torchvision_path(path: str, rows: Rows) -> str:
    """Translates timm's path of a module of MobileNetV3 to torchvision's.

    Args:
      path: e.g. "blocks.1.0.conv_dw".
      rows: the blocks of each stage.
    """
    count = sum(map(len, rows))
    ends = {
        "conv_stem": "features.0.0",
        "bn1": "features.0.1",
        "conv_head": "classifier.0",
        "classifier": "classifier.3",
    }
    match = re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(.+)", path)
    if match is None:
        return ends.get(path, path)
    stage, index, module = int(match[1]), int(match[2]), match[3]
    if stage == len(rows) - 1:
        return f"features.{count}.{ {'conv': 0, 'bn1': 1}[module] }"
    row, position = rows[stage][index], 1 + index + sum(map(len, rows[:stage]))
    layers = ["conv_dw", "conv_pw"] if row.kind == "separable" else ["conv_pw", "conv_dw", "conv_pwl"]
    norms = [f"bn{number}" for number, _ in enumerate(layers, start=1)]
    if row.squeeze:
        for names in (layers, norms):
            names.insert(-1, "se")
    if module.startswith("se."):
        own = f"{layers.index('se')}.fc{1 if module == 'se.conv_reduce' else 2}"
    else:
        own = f"{layers.index(module)}.0" if module in layers else f"{norms.index(module)}.1"
    return f"features.{position}.block.{own}"


# The usual weights of timm's networks and their preprocessing: side, resized side, interpolation, mean and std.
_TIMM: dict[str, tuple[str, Pretrained]] = {
    "mobilenetv3_small_100": ("lamb_in1k", Pretrained(interpolation="bicubic")),
    "mobilenetv3_large_100": ("ra_in1k", Pretrained(interpolation="bicubic")),
    "tf_mobilenetv3_small_100": ("in1k", Pretrained(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))),
    "tf_mobilenetv3_large_100": ("in1k", Pretrained(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))),
    "mobilenetv4_conv_small": ("e2400_r224_in1k", Pretrained(interpolation="bicubic")),
    "mobilenetv4_conv_medium": ("e500_r224_in1k", Pretrained(resize=235, interpolation="bicubic")),
}


def architecture(name: str, variant: Variant) -> Architecture:
    """Describes the network `name` of the family."""
    channels, strides = map_shapes(variant.rows)
    found = Architecture(
        name=name,
        family="mobilenet",
        make=functools.partial(MobileNet, variant),
        head="classifier",
        channels=channels,
        strides=strides,
        pooled=variant.features,
        dilates=variant.last != "normed",
        locate=located(len(variant.rows)),
        module_path=functools.partial(torchvision_path, rows=variant.rows),
    )
    if variant.last == "linear":
        return found
    weights, pretrained = _TIMM[name]
    return dataclasses.replace(
        found,
        pretrained=pretrained,
        pretrained_by=f"timm's {weights}",
        reference="timm",
        module_path=lambda path: path,
    )


ARCHITECTURES = {name: architecture(name, variant) for name, variant in VARIANTS.items()}
