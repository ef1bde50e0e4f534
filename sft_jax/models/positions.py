"""Position embeddings of transformers, whose number depends on the size of the images."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sft_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Positions:
    """Where a network keeps its position embeddings, and how they follow the size of its (square) images.

    Attributes:
      name: the parameter, [1, prefix + side * side, channels] for side * side patches; None if positions are computed.
      patch: side of a patch in pixels, which divides the size of the images.
      prefix: number of embeddings of tokens that are not patches (class token, registers); they come first.
    """

    name: str | None
    patch: int
    prefix: int

    def check(self, size: int, setting: str = "config.data.size") -> None:
        """Raises UserError if patches do not tile images of `size` pixels, the value of `setting`."""
        if size % self.patch:
            near = sorted({max(1, size // self.patch) * self.patch, (size // self.patch + 1) * self.patch})
            raise UserError(
                f"{setting}={size} is not a multiple of {self.patch} px, the side of the network's patches; use "
                f"{' or '.join(map(str, near))}"
            )

    def size_of(self, arrays: Mapping[str, Any]) -> int | None:
        """Returns the size of the images, in pixels, that weights are for; None if their shape fits none."""
        if self.name is None or self.name not in arrays or len(arrays[self.name].shape) != 3:
            return None
        count = arrays[self.name].shape[1] - self.prefix
        side = math.isqrt(max(count, 0))
        return side * self.patch if side and side * side == count else None

    def resampled(self, arrays: Mapping[str, np.ndarray], size: int) -> tuple[dict[str, np.ndarray], str]:
        """Returns weights for images of `size` pixels, and what was changed, to end a sentence; empty for nothing."""
        known = self.size_of(arrays)
        # The shape of others is reported with all other mismatches.
        if self.name is None or known is None or known == size:
            return dict(arrays), ""
        positions = np.asarray(resample(arrays[self.name], size // self.patch, size // self.patch, self.prefix))
        before, after = (f"{side // self.patch}x{side // self.patch}" for side in (known, size))
        said = f"; position embeddings resampled from {before} patches ({known} px) to {after} ({size} px)"
        return {**arrays, self.name: positions}, said


def resample(positions: jax.Array | np.ndarray, rows: int, columns: int, prefix: int) -> jax.Array | np.ndarray:
    """Resamples position embeddings of a square grid of patches, as timm's resample_abs_pos_embed.

    Bicubic with antialiasing, as Pillow and torch.nn.functional.interpolate(mode="bicubic", antialias=True).

    Args:
      positions: [1, prefix + side * side, channels].
      rows, columns: of the new grid.
      prefix: number of embeddings that stay as they are.

    Returns:
      [1, prefix + rows * columns, channels].
    """
    _, count, channels = positions.shape
    side = math.isqrt(count - prefix)
    if (rows, columns) == (side, side):
        return positions
    grid = jax.numpy.asarray(positions[:, prefix:]).reshape(side, side, channels)
    grid = jax.image.resize(grid, (rows, columns, channels), "bicubic", antialias=True)
    return jax.numpy.concatenate([positions[:, :prefix], grid.reshape(1, -1, channels)], axis=1)
