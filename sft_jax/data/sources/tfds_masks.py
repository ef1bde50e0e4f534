"""Records of tensorflow_datasets of which each has an image and its mask."""

import io
from typing import Any

import numpy as np

from sft_jax.data.dataset import Batch
from sft_jax.data.images import mask
from sft_jax.data.images.formats import opened
from sft_jax.data.images.reading import Reading
from sft_jax.data.images.square import Square, is_upright
from sft_jax.data.sources.masks import check_memory
from sft_jax.data.sources.tfds_prepared import Record
from sft_jax.data.sources.tfds_records import ImageRecords
from sft_jax.errors import UserError


class MaskRecords(ImageRecords):
    """Records of images with a mask each, whose values are the indices of classes.

    Classes have the names of a `LabeledImage`, or else the values of all masks that were read, from 0.
    """

    target = "mask"

    def __init__(self, builder: Any, name: str, image_key: str, target_key: str, reading: Reading):
        super().__init__(builder, name, image_key, target_key, reading)
        self.undecoded = (image_key, target_key)
        self._ignored = reading.ignored
        self._names = tuple(getattr(builder.info.features[target_key], "names", None) or ())
        self._seen = np.zeros(mask.VOID + 1, bool)

    @staticmethod
    def features() -> tuple[type, ...]:
        """See `ImageRecords`."""
        import tensorflow_datasets as tfds

        return tfds.features.Image, tfds.features.LabeledImage

    @property
    def class_names(self) -> tuple[str, ...]:
        """See `ImageRecords`. Raises UserError if masks have a value that no class has, or there is only one."""
        values = np.flatnonzero(self._seen)
        names = self._names or tuple(map(str, range(int(values.max(initial=0)) + 1)))
        unknown = values[values >= min(len(names), mask.VOID)]
        if len(unknown):
            raise UserError(
                f"masks of tfds:{self._name} have the value {unknown[0]}, but the {len(names)} classes are 0 to "
                f"{len(names) - 1}; if it marks pixels to ignore, use --config.data.ignore_index={unknown[0]}"
                if len(names) <= mask.VOID
                else f"masks of tfds:{self._name} have the value {mask.VOID}, which no class can have; if it marks "
                f"pixels to ignore, use --config.data.ignore_index={mask.VOID}"
            )
        if len(names) < 2:
            raise UserError(f"masks of tfds:{self._name} have one class, but segmentation needs two or more")
        return names

    @property
    def notices(self) -> list[str]:
        """See `ImageRecords`."""
        if self._names:
            return []
        absent = [str(value) for value in np.flatnonzero(~self._seen[: len(self.class_names)])]
        without = f"; no pixel is of {', '.join(absent)}" if absent else ""
        return [
            f"tfds:{self._name}: the classes are the values of the masks, 0 to {len(self.class_names) - 1}{without}"
        ]

    @property
    def identity(self) -> tuple[str, ...]:
        """See `ImageRecords`."""
        return self.image_key, self.target_key, f"ignored {self._ignored}"

    def empty(self, count: int, side: int) -> Batch:
        """See `ImageRecords`: masks uint8 [n, side, side], and bool [256], the values that occur.

        Raises UserError if they do not fit into memory.
        """
        check_memory(count, side)
        return {"masks": np.empty((count, side, side), np.uint8), "values": np.zeros(mask.VOID + 1, bool)}

    def fill(self, arrays: Batch, row: int, record: Record, square: Square) -> None:
        """See `ImageRecords`."""
        name = f"of record {row} of tfds:{self._name}"
        own, upright = mask.decoded(name, record[self.target_key])
        with opened(io.BytesIO(record[self.image_key])) as image:
            if image.size != own.shape[::-1] or not (upright and is_upright(image)):
                raise UserError(
                    f"the mask {name} has {own.shape[1]} x {own.shape[0]} pixels, but its picture {image.size[0]} x "
                    f"{image.size[1]}, or one of them is stored rotated (EXIF)"
                )
        values = np.unique(own)
        arrays["values"][values[values != self._ignored] if self._ignored is not None else values] = True
        arrays["masks"][row] = mask.squared(mask.voided(own, self._ignored), square)

    def targets(self, key: str, split: str, arrays: Batch) -> Batch:
        """See `ImageRecords`."""
        self._seen |= arrays["values"]
        return {"mask": arrays["masks"]}
