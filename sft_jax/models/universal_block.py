"""The block of MobileNetV4 (Qin et al., 2024, arXiv:2404.10518), the universal inverted bottleneck.

The attribute names are those of timm's `UniversalInvertedResidual`. Activations are [batch, height, width, channels].
"""

import jax

from sft_jax.models.inverted_residual import ConvNorm, same_conv, with_shortcut
from sft_jax.models.layers import NormedConv


class UniversalBlock(ConvNorm):
    """An inverted bottleneck whose depthwise convolutions, before and after the expansion, are both optional.

    Args:
      inputs, outputs: channels; with a shortcut if they are equal and the stride is 1.
      start: side of the depthwise kernel before the expansion, 0 for none.
      size: side of the depthwise kernel after it, 0 for none.
      stride: in pixels, of the depthwise convolution after the expansion if there is one.
      inner: channels after the expansion.
      style: see `Style`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        start: int,
        size: int,
        stride: int,
        inner: int,
        style,
        dtype,
        axis_name,
        rngs,
    ):
        self.style, self.shortcut = style, stride == 1 and inputs == outputs

        def conv(inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1) -> NormedConv:
            layer = same_conv(inputs, outputs, size, stride, style, groups=groups, dtype=dtype, rngs=rngs)
            return NormedConv(layer, axis_name=axis_name, epsilon=style.epsilon)

        self.dw_start = conv(inputs, inputs, start, 1 if size else stride, groups=inputs) if start else None
        self.pw_exp = conv(inputs, inner)
        self.dw_mid = conv(inner, inner, size, stride, groups=inner) if size else None
        self.pw_proj = conv(inner, outputs)

    def __call__(self, x: jax.Array, *, train: bool, factor: jax.Array | None = None) -> jax.Array:
        """Maps x [batch, height, width, inputs] to [..., outputs]; for `factor` see `skip_factor`."""
        y = x
        for layer, active in ((self.dw_start, False), (self.pw_exp, True), (self.dw_mid, True), (self.pw_proj, False)):
            if layer is not None:
                y = self.convolve(layer.conv, layer.bn, y, train=train)
                y = self.style.activation(y) if active else y
        return with_shortcut(x, y, factor) if self.shortcut else y
