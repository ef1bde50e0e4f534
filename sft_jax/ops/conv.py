"""2-D convolution."""

from typing import Literal

import jax
from jax import lax

Layout = Literal["NHWC", "HWNC"]


def conv2d(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0, groups: int = 1, layout: Layout = "NHWC"
) -> jax.Array:
    """Cross-correlation with symmetric zero padding, as `torch.nn.functional.conv2d`.

    Args:
      x: [batch, height, width, in] (or [height, width, batch, in] for layout "HWNC").
      kernel: [kernel_height, kernel_width, in / groups, out].
      stride: of the window, in pixels, the same on both axes.
      padding: rows and columns of zeros added on each of the four sides. Explicit, because XLA's "SAME" pads
        even sizes unevenly and torch does not.
      groups: input and output channels are split in this many independent groups.
      layout: where the axes of `x` and of the result stand.
    """
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=(layout, "HWIO", layout),
        feature_group_count=groups,
    )
