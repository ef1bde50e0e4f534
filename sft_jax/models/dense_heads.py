"""Heads that give every pixel an output, from the maps of a backbone.

Three are torchvision's: `FCNHead` (Long et al., 2014, arXiv:1411.4038), `DeepLabHead` (Chen et al., 2017,
arXiv:1706.05587) and `LRASPPHead` (Howard et al., 2019, arXiv:1905.02244), with its state_dict keys as attribute
paths; None stands for parameterless layers, which are numbered there. `LinearHead` is the one with which DINOv2 is
scored, batch norm and a linear layer. `SegformerHead` is transformers' `SegformerDecodeHead` (Xie et al., 2021,
arXiv:2105.15203), under the names of its published files. `UPerNetHead` has a file of its own.

Maps are [batch, height, width, channels]; logits are float32. A head takes the maps that it `reads`: the "last" one,
"all" with a stride of 4 or more, or the one of stride 8 and the last ("eighth"). Its `lasts` are the paths of the
layers whose outputs are its own.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sft_jax import ops
from sft_jax.models.dropout import dropout
from sft_jax.models.layers import BatchNorm2d, Conv2d, PixelLinear, conv_images
from sft_jax.models.transformer import Dense
from sft_jax.models.upernet_head import UPerNetHead

# Dilations of DeepLabV3's atrous spatial pyramid, and the channels of its branches.
RATES, BRANCH = (12, 24, 36), 256
# Channels between the layers of LRASPP.
INNER = 128


class LinearHead(nnx.List):
    """Batch norm and a linear layer on every position of the last map."""

    reads, lasts = "last", ("1",)

    def __init__(self, channels: Sequence[int], outputs: int, *, dtype, axis_name: str | None, rngs: nnx.Rngs):
        (inputs,) = channels
        super().__init__([BatchNorm2d(inputs, axis_name=axis_name), PixelLinear(inputs, outputs, rngs=rngs)])

    def __call__(self, maps: Sequence[jax.Array], *, train: bool, key: jax.Array | None) -> jax.Array:
        """Maps [batch, height, width, channels] to logits [batch, height, width, outputs]."""
        (last,) = maps
        norm, linear = self
        return linear(norm(last, train=train))


class FCNHead(nnx.List):
    """A 3x3 convolution, dropout and a linear layer on the last map."""

    reads, lasts = "last", ("4",)

    def __init__(self, channels: Sequence[int], outputs: int, *, dtype, axis_name: str | None, rngs: nnx.Rngs):
        (inputs,) = channels
        inner, self.axis_name = inputs // 4, axis_name
        conv = Conv2d(inputs, inner, 3, padding=1, dtype=dtype, rngs=rngs)
        norm = BatchNorm2d(inner, axis_name=axis_name)
        super().__init__([conv, norm, None, None, PixelLinear(inner, outputs, rngs=rngs)])

    def __call__(self, maps: Sequence[jax.Array], *, train: bool, key: jax.Array | None) -> jax.Array:
        """See `LinearHead`."""
        (last,) = maps
        conv, norm, _, _, linear = self
        x = norm(conv_images(conv, last), train=train, relu=True)
        return linear(dropout(x, key, 0.1, self.axis_name))


class DeepLabHead(nnx.List):
    """Atrous spatial pyramid pooling of the last map, a 3x3 convolution and a linear layer."""

    reads, lasts = "last", ("4",)

    def __init__(self, channels: Sequence[int], outputs: int, *, dtype, axis_name: str | None, rngs: nnx.Rngs):
        (inputs,) = channels
        pyramid = Pyramid(inputs, dtype=dtype, axis_name=axis_name, rngs=rngs)
        conv = Conv2d(BRANCH, BRANCH, 3, padding=1, dtype=dtype, rngs=rngs)
        norm = BatchNorm2d(BRANCH, axis_name=axis_name)
        super().__init__([pyramid, conv, norm, None, PixelLinear(BRANCH, outputs, rngs=rngs)])

    def __call__(self, maps: Sequence[jax.Array], *, train: bool, key: jax.Array | None) -> jax.Array:
        """See `LinearHead`."""
        (last,) = maps
        pyramid, conv, norm, _, linear = self
        x = pyramid(last, train=train, key=key)
        return linear(norm(conv_images(conv, x), train=train, relu=True))


class Pyramid(nnx.Module):
    """torchvision's `ASPP`: a 1x1, three dilated 3x3 convolutions and the mean of the map, concatenated and mixed."""

    def __init__(self, channels: int, *, dtype, axis_name: str | None, rngs: nnx.Rngs):
        def branch(inputs: int, rate: int | None, place: int = 0) -> nnx.List:
            size = {} if rate is None else {"padding": rate, "dilation": rate}
            conv = Conv2d(inputs, BRANCH, 1 if rate is None else 3, **size, dtype=dtype, rngs=rngs)
            return nnx.List([*[None] * place, conv, BatchNorm2d(BRANCH, axis_name=axis_name)])

        self.convs = nnx.List(
            [branch(channels, None), *(branch(channels, rate) for rate in RATES), branch(channels, None, place=1)]
        )
        self.project = branch(len(self.convs) * BRANCH, None)
        self.axis_name = axis_name

    def __call__(self, x: jax.Array, *, train: bool, key: jax.Array | None) -> jax.Array:
        """Maps [batch, height, width, channels] to [batch, height, width, BRANCH]."""
        *branches, of_mean = self.convs
        found = [norm(conv_images(conv, x), train=train, relu=True) for conv, norm in branches]
        _, conv, norm = of_mean
        mean = norm(conv_images(conv, x.mean((1, 2), keepdims=True)), train=train, relu=True)
        found.append(jnp.broadcast_to(mean, found[0].shape))
        conv, norm = self.project
        x = norm(conv_images(conv, jnp.concatenate(found, -1)), train=train, relu=True)
        return dropout(x, key, 0.5, self.axis_name)


class LRASPPHead(nnx.Module):
    """Sums linear layers on the last map, gated by its mean, and on one of stride 8."""

    reads, lasts = "eighth", ("low_classifier", "high_classifier")

    def __init__(self, channels: Sequence[int], outputs: int, *, dtype, axis_name: str | None, rngs: nnx.Rngs):
        eighth, last = channels
        conv = Conv2d(last, INNER, 1, dtype=dtype, rngs=rngs)
        self.cbr = nnx.List([conv, BatchNorm2d(INNER, axis_name=axis_name)])
        self.scale: Any = nnx.List([None, Conv2d(last, INNER, 1, dtype=dtype, rngs=rngs)])
        self.low_classifier = PixelLinear(eighth, outputs, rngs=rngs)
        self.high_classifier = PixelLinear(INNER, outputs, rngs=rngs)

    def __call__(self, maps: Sequence[jax.Array], *, train: bool, key: jax.Array | None) -> jax.Array:
        """Maps both maps to logits [batch, height, width, outputs] of the size of the first."""
        eighth, last = maps
        conv, norm = self.cbr
        _, gate = self.scale
        mean = gate(last.mean((1, 2), keepdims=True), layout="NHWC")
        x = norm(conv(last, layout="NHWC"), train=train, relu=True) * jax.nn.sigmoid(mean)
        high = ops.upsample(x, *eighth.shape[1:3])
        return self.low_classifier(eighth) + self.high_classifier(high)


class SegformerHead(nnx.Module):
    """Brings all maps to the same channels and to the size of the first, and mixes them at every position.

    The published networks have 256 channels in the smallest two sizes and 768 in the others.
    """

    reads, lasts = "all", ("classifier",)

    def __init__(
        self,
        channels: Sequence[int],
        outputs: int,
        *,
        width: int = BRANCH,
        dtype,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        projections = [nnx.Dict(proj=Dense(own, width, dtype=dtype, rngs=rngs)) for own in channels]
        self.linear_c: Any = nnx.List(projections)
        self.linear_fuse = Conv2d(len(channels) * width, width, 1, dtype=dtype, rngs=rngs)
        self.batch_norm = BatchNorm2d(width, axis_name=axis_name)
        self.classifier = PixelLinear(width, outputs, rngs=rngs)
        self.axis_name = axis_name

    def __call__(self, maps: Sequence[jax.Array], *, train: bool, key: jax.Array | None) -> jax.Array:
        """Maps all maps, the largest first, to logits [batch, height, width, outputs] of its size."""
        # Both layers and the interpolation are linear: one product instead of two, and before the interpolation, gives
        # the same. For four maps of 256 px, batch 8, forward and backward take 243 ms on two CPU cores; 409 with two
        # products. The part of the mixing's kernel for the smallest map comes first.
        parts = jnp.split(self.linear_fuse.kernel[...][0, 0], len(maps))[::-1]
        dtype = self.linear_fuse.dtype
        mixed = jnp.zeros((), dtype)
        for own, part, layer in zip(maps, parts, self.linear_c, strict=True):
            kernel, bias = (
                jnp.matmul(factor, part, precision="highest")
                for factor in (layer["proj"].kernel[...], layer["proj"].bias[...])
            )
            rows = ops.dense(own.reshape(-1, own.shape[-1]).astype(dtype), kernel, bias)
            mixed += ops.upsample(rows.reshape(*own.shape[:3], -1), *maps[0].shape[1:3])
        x = self.batch_norm(mixed, train=train, relu=True)
        return self.classifier(dropout(x, key, 0.1, self.axis_name, channels=True))


# By the beginning of the network's name.
HEADS: dict[str, Any] = {
    "linear": LinearHead,
    "fcn": FCNHead,
    "deeplabv3": DeepLabHead,
    "lraspp": LRASPPHead,
    "segformer": SegformerHead,
    "upernet": UPerNetHead,
}
