"""Segments of COCO's panoptic masks, whose pixels are the numbers of segments instead of classes."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from sft_jax.errors import UserError

# What each channel of a pixel counts: number = R + 256 G + 256^2 B.
PLACES = np.array([1, 256, 256**2], np.uint32)


class Segments(NamedTuple):
    """The segments of a mask.

    Attributes:
      numbers: uint32 [segments], ascending; among them 0, of the pixels of no segment.
      classes: uint8 [segments], the value in masks of each.
    """

    numbers: np.ndarray
    classes: np.ndarray

    def values(self, pixels: np.ndarray, path: Path | str) -> np.ndarray:
        """Maps pixels, uint8 [height, width, 3 or 4], to their values, uint8 [height, width].

        `path` is what a UserError calls the mask, which is raised if a pixel has a number that no segment has.
        """
        numbers = (pixels[..., :3] * PLACES).sum(-1, dtype=np.uint32)
        places = np.searchsorted(self.numbers, numbers).clip(max=len(self.numbers) - 1)
        unknown = self.numbers[places] != numbers
        if unknown.any():
            raise UserError(f"the mask {path} has the segment {numbers[unknown][0]}, which its JSON file does not list")
        return self.classes[places]

    def tobytes(self) -> bytes:
        """Returns the content, for a digest."""
        return self.numbers.tobytes() + self.classes.tobytes()
