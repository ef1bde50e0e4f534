"""UPerNet's head (Xiao et al., 2018, arXiv:1807.10221), transformers' `UperNetHead`: a pyramid of pooled maps on top of
a pyramid of features.

Attribute paths are transformers' names, but for `norms`, which its backbones have. Interfaces are those of
`dense_heads`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sft_jax import ops
from sft_jax.models.dropout import dropout
from sft_jax.models.layers import BatchNorm2d, Conv2d, PixelLinear, conv_images
from sft_jax.models.transformer import LayerNorm, normalised

# Channels between the layers of the published networks, and the sides of the pooled maps.
WIDTH, BINS = 512, (1, 2, 3, 6)
# Beginnings of transformers' names of the head, and of the norms of the maps of its backbones.
DECODER, NORMS = "decode_head.", "backbone.hidden_states_norms.stage"


class ConvNormRelu(nnx.Module):
    """transformers' `UperNetConvModule`: a convolution that keeps the size, batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int, *, dtype, axis_name: str | None, rngs: nnx.Rngs):
        self.conv = Conv2d(inputs, outputs, size, padding=size // 2, dtype=dtype, rngs=rngs)
        self.batch_norm = BatchNorm2d(outputs, axis_name=axis_name)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps x [batch, height, width, inputs] to [batch, height, width, outputs]."""
        return self.batch_norm(conv_images(self.conv, x), train=train, relu=True)


class UPerNetHead(nnx.Module):
    """Pools the last map at several scales, adds the maps from the last to the first, and mixes them all.

    Args:
      channels: of the maps.
      outputs: per pixel.
      epsilon: of the layer normalisation of the maps; None if they are normalised already.
      width: channels between the layers.
    """

    reads, lasts = "all", ("classifier",)

    def __init__(
        self,
        channels: Sequence[int],
        outputs: int,
        *,
        epsilon: float | None = None,
        width: int = WIDTH,
        dtype,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        def layer(inputs: int, size: int) -> ConvNormRelu:
            return ConvNormRelu(inputs, width, size, dtype=dtype, axis_name=axis_name, rngs=rngs)

        *lower, last = channels
        norms = None if epsilon is None else nnx.List([LayerNorm(own, epsilon=epsilon) for own in channels])
        self.norms: Any = norms
        # A parameterless layer comes first in the reference.
        self.psp_modules: Any = nnx.List([nnx.List([None, layer(last, 1)]) for _ in BINS])
        self.bottleneck = layer(last + len(BINS) * width, 3)
        self.lateral_convs = nnx.List([layer(own, 1) for own in lower])
        self.fpn_convs = nnx.List([layer(width, 3) for _ in lower])
        self.fpn_bottleneck = layer(len(channels) * width, 3)
        self.classifier = PixelLinear(width, outputs, rngs=rngs)
        self.axis_name = axis_name

    def __call__(self, maps: Sequence[jax.Array], *, train: bool, key: jax.Array | None) -> jax.Array:
        """Maps all maps, the largest first, to logits [batch, height, width, outputs] of its size."""
        if self.norms is not None:
            maps = [normalised(norm, own) for norm, own in zip(self.norms, maps, strict=True)]
        *lower, last = maps
        levels = zip(BINS, self.psp_modules, strict=True)
        pooled = [layer(adaptive_mean(last, bins), train=train) for bins, (_, layer) in levels]
        context = [last, *(ops.upsample(own, *last.shape[1:3]).astype(last.dtype) for own in pooled)]
        sums = [self.bottleneck(jnp.concatenate(context, -1), train=train)]
        for lateral, own in zip(reversed(self.lateral_convs), reversed(lower), strict=True):
            sums.append(lateral(own, train=train) + ops.upsample(sums[-1], *own.shape[1:3]))
        top, *others = sums
        smoothed = [layer(own, train=train) for layer, own in zip(self.fpn_convs, reversed(others), strict=True)]
        mixed = jnp.concatenate([ops.upsample(own, *maps[0].shape[1:3]) for own in (*smoothed, top)], -1)
        x = self.fpn_bottleneck(mixed, train=train)
        return self.classifier(dropout(x, key, 0.1, self.axis_name, channels=True))


def transformers_path(of_backbone: Callable[[str], str], path: str) -> str:
    """Returns transformers' path of a module of a whole network; those of the backbone are `of_backbone`'s."""
    part, _, own = path.partition(".")
    if part == "backbone":
        return f"{part}.{of_backbone(own)}"
    first, _, index = own.partition(".")
    return f"{NORMS}{int(index) + 1}" if first == "norms" else DECODER + own


def adaptive_mean(x: jax.Array, bins: int) -> jax.Array:
    """Maps x [batch, height, width, channels] to the means of bins x bins parts, `torch.nn.AdaptiveAvgPool2d`.

    Parts overlap where a side is no multiple of `bins`.
    """
    rows, columns = (jnp.asarray(_means(length, bins), x.dtype) for length in x.shape[1:3])
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision="highest")


def _means(length: int, bins: int) -> np.ndarray:
    """Returns the matrix [bins, length] that gives the means of the parts of an axis."""
    matrix = np.zeros((bins, length))
    for index in range(bins):
        part = slice(index * length // bins, -(-(index + 1) * length // bins))
        matrix[index, part] = 1 / (part.stop - part.start)
    return matrix
