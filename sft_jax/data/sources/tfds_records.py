"""Reads the records of an image dataset of tensorflow_datasets as splits."""

import concurrent.futures
import dataclasses
import functools
import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sft_jax.data.dataset import DECODING_THREADS, StreamedSplit
from sft_jax.data.images.formats import opened
from sft_jax.data.images.reading import Reading
from sft_jax.data.images.square import Square
from sft_jax.data.sources.tfds_prepared import BLOCK, Prepared, Record
from sft_jax.errors import UserError

# Records per decoding task.
TASK = 32
# Number of images of a streamed split whose sizes are examined.
SAMPLE = 1000


class Records(Prepared):
    """The records of the dataset `name`, each with an image and a label.

    Attributes:
      image_key, label_key: names of the two features.
      class_names: in label order.
    """

    def __init__(self, builder: Any, name: str, image_key: str, label_key: str, progress: Callable[[int, int], None]):
        super().__init__(builder, name)
        self._progress = progress
        self.image_key, self.label_key, self.undecoded = image_key, label_key, (image_key,)
        self._image, label = builder.info.features[image_key], builder.info.features[label_key]
        self.class_names = tuple(label.names)
        if self._image.np_dtype != np.uint8:
            raise UserError(
                f"images of tfds:{name} are {self._image.np_dtype}; only 8-bit gray or RGB images are supported"
            )

    def square(self, size: int, reading: Reading) -> tuple[Square, int]:
        """Returns the host-side preprocessing, and the side length of its results.

        Square images of one common size are left unchanged, unless a trained network requires otherwise.
        """
        height, width = self._image.shape[:2]
        given = reading.square
        keeps = height is not None and height == width and (given is None or given.keep_square)
        square = dataclasses.replace(reading.square_of(size), keep_square=keeps)
        return square, height if keeps else square.side

    def encoded(self, key: str, split: str) -> Iterator[tuple[bytes, int]]:
        """Yields the encoded image and the label of each record of a split. Raises UserError if they are damaged."""
        self.count(key, split)
        with self.reading(split):
            for record in self.records(split):
                yield record[self.image_key], int(record[self.label_key])

    def decoded(self, key: str, split: str, square: Square) -> dict[str, np.ndarray]:
        """Decodes and resizes all records of a split.

        Returns:
          images uint8 [n, side, side, 3], labels int32 [n], and sizes int32 [n, 2]: original width and height.

        Raises:
          UserError: files are damaged, or there are no labels.
        """
        count = self.count(key, split)
        side = self._image.shape[0] if square.keep_square else square.side
        images = np.empty((count, side, side, 3), np.uint8)
        labels, sizes = np.empty(count, np.int32), np.empty((count, 2), np.int32)

        def decode(first: int, records: list[Record]) -> None:
            for row, record in enumerate(records, first):
                images[row], sizes[row] = self._decoded(record, square)
                labels[row] = record[self.label_key]

        done = 0
        with self.reading(split), concurrent.futures.ThreadPoolExecutor(DECODING_THREADS) as pool:
            for block in batched(self.records(split), BLOCK):
                if done + len(block) > count:
                    raise ValueError(f"there are more than {count} records")
                tasks = [block[first : first + TASK] for first in range(0, len(block), TASK)]
                list(pool.map(decode, itertools.count(done, TASK), tasks))
                done += len(block)
                self._progress(done, count)
        self._check(key, split, labels[:done], count)
        return {"images": images, "labels": labels, "sizes": sizes}

    def streamed(self, key: str, split: str, square: Square) -> tuple[StreamedSplit, np.ndarray]:
        """Returns a split that decodes records on demand, and the sizes, int32 [n, 2], of its first `SAMPLE` images.

        Only labels and these sizes are read now.

        Raises:
          UserError: as `decoded`, or the file format has no random access.
        """
        count = self.count(key, split)
        labels: list[int] = []
        sizes: list[tuple[int, int]] = []
        with self.reading(split):
            for record in self.records(split):
                labels.append(record[self.label_key])
                if len(sizes) < SAMPLE:
                    sizes.append(self._size(record))
                self._progress(len(labels), count)
            source = self.source(split)
        if source is None:
            raise UserError(
                f"tfds:{self._name} in {self._builder.data_dir} does not fit into memory, and was prepared as "
                f"TFRecord, which has no random access; prepare it again with file_format='array_record'"
            )
        label_array = np.array(labels, np.int32)
        self._check(key, split, label_array, count)
        decode = functools.partial(self._decoded_row, source, split, square)
        return StreamedSplit.of_images(decode, np.arange(count), label_array), np.array(sizes, np.int32)

    def _decoded_row(self, source: Any, split: str, square: Square, row: int) -> np.ndarray:
        with self.reading(split):
            return self._decoded(source[row], square)[0]

    def _decoded(self, record: Record, square: Square) -> tuple[np.ndarray, tuple[int, int]]:
        """Returns a record's preprocessed image, and its original width and height."""
        with opened(io.BytesIO(record[self.image_key])) as image:
            size = image.size  # a JPEG file may be decoded at a fraction of it
            return square.of_image(image), size

    def _size(self, record: Record) -> tuple[int, int]:
        with opened(io.BytesIO(record[self.image_key])) as image:
            return image.size

    def _check(self, key: str, split: str, labels: np.ndarray, count: int) -> None:
        """Raises UserError if labels are missing or out of range."""
        where = f"split {split!r} of tfds:{self._name} in {self._builder.data_dir}"
        if len(labels) != count:
            raise UserError(f"{where} has {len(labels)} images instead of {count}; its files are damaged")
        if (labels == -1).all():
            raise UserError(f"data.{key}={split} has no labels (all are -1); {self.others(key)}")
        if labels.min() < 0 or labels.max() >= len(self.class_names):
            raise UserError(f"{where} has labels outside its {len(self.class_names)} classes; its files are damaged")


def batched(records: Iterator[Record], count: int) -> Iterator[list[Record]]:
    """Yields lists of `count` records; the last one may be shorter."""
    while block := list(itertools.islice(records, count)):
        yield block
