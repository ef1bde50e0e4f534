"""The block of Swin transformers: attention within windows, which every second block shifts.

The attribute names are those of timm's `SwinTransformerBlock`. Activations are [batch, height, width, channels].
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sft_jax import ops
from sft_jax.models.transformer import DEVIATION, Dense, LayerNorm, normalised

EPSILON = 1e-5  # of layer normalisation
EXPANSION = 4
SHUT = -100.0  # score of positions that are not neighbours, as in the reference


def relative_index(window: int) -> np.ndarray:
    """Returns which of the (2 window - 1)^2 offsets lies between each two positions: int64 [window^2, window^2]."""
    row, column = np.divmod(np.arange(window * window), window)
    down, right = (axis[:, None] - axis[None] + window - 1 for axis in (row, column))
    return down * (2 * window - 1) + right


def shift_mask(height: int, width: int, window: int, shifts: tuple[int, int]) -> np.ndarray:
    """Returns 0 for positions of a window that were neighbours before the map was rolled, otherwise `SHUT`.

    Args:
      height, width: of the map, multiples of `window`.
      window: side of a window.
      shifts: by how many rows and columns it was rolled up and left.

    Returns:
      float32 [windows, window^2, window^2].
    """
    regions = np.zeros((height, width), np.int64)
    for axis, (length, shift) in enumerate(zip((height, width), shifts, strict=True)):
        position = np.arange(length)
        # Rolled positions come from the other side of the map.
        region = (position >= length - window).astype(np.int64) + (position >= length - shift)
        regions = regions * 3 + np.expand_dims(region, 1 - axis)
    own = regions.reshape(height // window, window, width // window, window).swapaxes(1, 2).reshape(-1, window * window)
    return np.where(own[:, None] == own[:, :, None], 0, SHUT).astype(np.float32)


class WindowAttention(nnx.Module):
    """Multi-head self-attention within windows, with a bias for each offset between two positions.

    Args:
      channels: of a token.
      heads: number of heads.
      window: side of a window in tokens.
      shifted: whether windows begin half a window later.

    Attributes:
      shifts_lone: whether the window of a map that has only one is shifted too. torchvision's and Microsoft's
        classifiers leave it in place, transformers' backbones do not.
    """

    shifts_lone = False

    def __init__(self, channels: int, heads: int, window: int, shifted: bool, *, dtype, rngs):
        self.heads, self.window, self.shifted = heads, window, shifted
        self.qkv = Dense(channels, 3 * channels, dtype=dtype, rngs=rngs)
        self.proj = Dense(channels, channels, dtype=dtype, rngs=rngs)
        shape = ((2 * window - 1) ** 2, heads)
        self.relative_position_bias_table = nnx.Param(DEVIATION * jax.random.normal(rngs.params(), shape, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [batch, height, width, channels] to the same shape; maps are padded to whole windows with zeros."""
        side = self.window
        batch, height, width, channels = x.shape
        rows, columns = (math.ceil(length / side) * side for length in (height, width))
        x = jnp.pad(x, ((0, 0), (0, rows - height), (0, columns - width), (0, 0)))
        moved = (self.shifted and (self.shifts_lone or length > side) for length in (rows, columns))
        shifts = tuple(side // 2 if own else 0 for own in moved)
        x = jnp.roll(x, (-shifts[0], -shifts[1]), (1, 2)) if any(shifts) else x
        windows = x.reshape(batch, rows // side, side, columns // side, side, channels).swapaxes(2, 3)
        qkv = self.project(windows.reshape(-1, channels))
        mixed = self.proj(ops.self_attention(qkv, side * side, self.heads, self._bias(rows, columns, shifts)))
        x = mixed.reshape(windows.shape).swapaxes(2, 3).reshape(x.shape)
        x = jnp.roll(x, shifts, (1, 2)) if any(shifts) else x
        return x[:, :height, :width]

    def project(self, rows: jax.Array) -> jax.Array:
        """Maps rows [rows, channels] to queries, keys and values [rows, 3 * channels]."""
        return self.qkv(rows)

    def offset_biases(self) -> jax.Array:
        """Returns the bias for each offset, [(2 window - 1)^2, heads]."""
        return self.relative_position_bias_table[...]

    def _bias(self, rows: int, columns: int, shifts: tuple[int, ...]) -> jax.Array:
        """Returns the bias of the scores, [1 or windows, heads, window^2, window^2]."""
        positions = self.window**2
        bias = self.offset_biases()[relative_index(self.window).reshape(-1)]
        bias = bias.reshape(positions, positions, self.heads).transpose(2, 0, 1)[None]
        if not any(shifts):
            return bias
        mask = shift_mask(rows, columns, self.window, (shifts[0], shifts[1]))
        return bias + jnp.asarray(mask, bias.dtype)[:, None]


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, channels: int, heads: int, window: int, shifted: bool, *, dtype, rngs):
        self.norm1 = LayerNorm(channels, epsilon=EPSILON)
        self.attn = WindowAttention(channels, heads, window, shifted, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(channels, epsilon=EPSILON)
        hidden = EXPANSION * channels
        self.mlp = nnx.Dict(
            fc1=Dense(channels, hidden, dtype=dtype, rngs=rngs), fc2=Dense(hidden, channels, dtype=dtype, rngs=rngs)
        )

    def __call__(self, x: jax.Array, factors: Sequence[jax.Array | None]) -> jax.Array:
        """Maps x [batch, height, width, channels]; `factors` of the two branches are [batch], see `skip_factor`."""
        x = x + scaled(self.attn(normalised(self.norm1, x)).astype(x.dtype), factors[0])
        rows = normalised(self.norm2, x).reshape(-1, x.shape[-1])
        branch = self.mlp["fc2"](ops.gelu(self.mlp["fc1"](rows))).reshape(x.shape).astype(x.dtype)
        return x + scaled(branch, factors[1])


class PatchMerging(nnx.Module):
    """Halves the map: the channels of four neighbours are normalised and mapped to twice those of one."""

    def __init__(self, channels: int, *, dtype, rngs):
        self.norm = LayerNorm(4 * channels, epsilon=EPSILON)
        self.reduction = Dense(4 * channels, 2 * channels, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [batch, height, width, channels] to [batch, ceil(height / 2), ceil(width / 2), 2 channels]."""
        neighbours = squares(x)
        rows = normalised(self.norm, neighbours).reshape(-1, neighbours.shape[-1])
        return self.reduction(rows).reshape(*neighbours.shape[:3], -1).astype(x.dtype)


def squares(x: jax.Array) -> jax.Array:
    """Concatenates the channels of 2 x 2 neighbours: [batch, ceil(height / 2), ceil(width / 2), 4 channels]."""
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    rows, columns = x.shape[1] // 2, x.shape[2] // 2
    # The rows of a square are the faster axis, unlike in a ConvNeXt's patches.
    ordered = x.reshape(batch, rows, 2, columns, 2, channels).transpose(0, 1, 3, 4, 2, 5)
    return ordered.reshape(batch, rows, columns, 4 * channels)


def scaled(branch: jax.Array, factor: jax.Array | None) -> jax.Array:
    """Multiplies a residual branch by `factor` [batch], of stochastic depth, or by 1 for None."""
    return branch if factor is None else branch * factor.astype(branch.dtype)[:, None, None, None]
