"""Reads the records of an image dataset of tensorflow_datasets as splits."""

import abc
import concurrent.futures
import dataclasses
import functools
import io
import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from sft_jax.data.dataset import DECODING_THREADS, ArraySplit, Batch, StreamedSplit
from sft_jax.data.images.formats import opened
from sft_jax.data.images.reading import Reading
from sft_jax.data.images.square import Square
from sft_jax.data.sources.tfds_prepared import BLOCK, Prepared, Record
from sft_jax.errors import UserError

# Records per decoding task.
TASK = 32
# Number of images of a streamed split whose sizes are examined.
SAMPLE = 1000


class ImageRecords(Prepared, abc.ABC):
    """The records of the dataset `name`, each with an image and a target.

    Attributes:
      target: what a target is called: "label" or "mask".
      image_key, target_key: names of the two features.
    """

    target: ClassVar[str]

    def __init__(self, builder: Any, name: str, image_key: str, target_key: str, reading: Reading):
        super().__init__(builder, name)
        self._progress = reading.progress
        self.image_key, self.target_key, self.undecoded = image_key, target_key, (image_key,)
        self._image = builder.info.features[image_key]
        if self._image.np_dtype != np.uint8:
            raise UserError(
                f"images of tfds:{name} are {self._image.np_dtype}; only 8-bit gray or RGB images are supported"
            )

    @staticmethod
    @abc.abstractmethod
    def features() -> tuple[type, ...]:
        """Returns the classes of tfds's features that can be targets."""

    @property
    @abc.abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """In label order; known once the splits are read."""

    @property
    def notices(self) -> list[str]:
        """Lines about what was guessed, known once the splits are read."""
        return []

    @property
    @abc.abstractmethod
    def identity(self) -> tuple[str, ...]:
        """What the arrays of a split depend on, besides the dataset and how its images are read."""

    @abc.abstractmethod
    def empty(self, count: int, side: int) -> Batch:
        """Returns arrays for what is known of the targets of `count` records, of images with this side length."""

    @abc.abstractmethod
    def fill(self, arrays: Batch, row: int, record: Record, square: Square) -> None:
        """Reads the target of a record into row `row` of `arrays`; several threads at once. Raises UserError."""

    @abc.abstractmethod
    def targets(self, key: str, split: str, arrays: Batch) -> Batch:
        """Returns the targets of a split by name, from filled arrays. Raises UserError if they are not usable."""

    def square(self, size: int, reading: Reading) -> tuple[Square, int]:
        """Returns the host-side preprocessing, and the side length of its results.

        Square images of one common size are left unchanged, unless a trained network requires otherwise.
        """
        height, width = self._image.shape[:2]
        given = reading.square
        keeps = height is not None and height == width and (given is None or given.keep_square)
        square = dataclasses.replace(reading.square_of(size), keep_square=keeps)
        return square, height if keeps else square.side

    def decoded(self, key: str, split: str, square: Square) -> Batch:
        """Decodes and resizes all records of a split.

        Returns:
          images uint8 [n, side, side, 3], sizes int32 [n, 2]: original width and height, and the arrays of `empty`.

        Raises:
          UserError: files are damaged.
        """
        count = self.count(key, split)
        side = self._side(square)
        images, sizes = np.empty((count, side, side, 3), np.uint8), np.empty((count, 2), np.int32)
        arrays = self.empty(count, side)

        def decode(first: int, records: list[Record]) -> None:
            for row, record in enumerate(records, first):
                images[row], sizes[row] = self._decoded(record, square)
                self.fill(arrays, row, record, square)

        with self.reading(split), concurrent.futures.ThreadPoolExecutor(DECODING_THREADS) as pool:
            for start, block in self._blocks(split, count):
                tasks = [block[first : first + TASK] for first in range(0, len(block), TASK)]
                list(pool.map(decode, itertools.count(start, TASK), tasks))
        return {"images": images, "sizes": sizes, **arrays}

    def in_memory(self, key: str, split: str, arrays: Batch) -> tuple[ArraySplit, np.ndarray]:
        """Returns a split of the arrays of `decoded`, and the sizes. Raises UserError if targets are not usable."""
        return ArraySplit({"image": arrays["images"]}, self.targets(key, split, arrays)), arrays["sizes"]

    def streamed(self, key: str, split: str, square: Square) -> tuple[StreamedSplit, np.ndarray]:
        """Returns a split that decodes records on demand, and the sizes, int32 [n, 2], of its first `SAMPLE` images.

        Only targets and these sizes are read now.

        Raises:
          UserError: as `decoded` and `targets`, or the file format has no random access.
        """
        count = self.count(key, split)
        arrays = self.empty(count, self._side(square))
        sizes: list[tuple[int, int]] = []
        with self.reading(split):
            for start, block in self._blocks(split, count):
                for row, record in enumerate(block, start):
                    self.fill(arrays, row, record, square)
                sizes += [self._size(record) for record in block[: SAMPLE - len(sizes)]]
            source = self.source(split)
        if source is None:
            raise UserError(
                f"tfds:{self._name} in {self._builder.data_dir} does not fit into memory, and was prepared as "
                f"TFRecord, which has no random access; prepare it again with file_format='array_record'"
            )
        decode = functools.partial(self._decoded_row, source, split, square)
        targets = self.targets(key, split, arrays)
        return StreamedSplit(decode, np.arange(count), targets), np.array(sizes, np.int32)

    def _side(self, square: Square) -> int:
        return self._image.shape[0] if square.keep_square else square.side

    def _decoded_row(self, source: Any, split: str, square: Square, row: int) -> Batch:
        with self.reading(split):
            return {"image": self._decoded(source[row], square)[0]}

    def _decoded(self, record: Record, square: Square) -> tuple[np.ndarray, tuple[int, int]]:
        """Returns a record's preprocessed image, and its original width and height."""
        with opened(io.BytesIO(record[self.image_key])) as image:
            size = image.size  # a JPEG file may be decoded at a fraction of it
            return square.of_image(image), size

    def _size(self, record: Record) -> tuple[int, int]:
        with opened(io.BytesIO(record[self.image_key])) as image:
            return image.size

    def where(self, split: str) -> str:
        """Names a split in a message."""
        return f"split {split!r} of tfds:{self._name} in {self._builder.data_dir}"

    def _blocks(self, split: str, count: int) -> Iterator[tuple[int, list[Record]]]:
        """Yields the records of a split in blocks, with the number of each block's first one, and tells the progress.

        Raises:
          ValueError: there are more than `count`.
          UserError: there are fewer.
        """
        records, done = self.records(split), 0
        while block := list(itertools.islice(records, BLOCK)):
            if done + len(block) > count:
                raise ValueError(f"there are more than {count} records")
            yield done, block
            done += len(block)
            self._progress(done, count)
        if done != count:
            raise UserError(f"{self.where(split)} has {done} images instead of {count}; its files are damaged")


class Records(ImageRecords):
    """Records of images with a label each."""

    target = "label"

    @staticmethod
    def features() -> tuple[type, ...]:
        """See `ImageRecords`."""
        import tensorflow_datasets as tfds

        return (tfds.features.ClassLabel,)

    @property
    def class_names(self) -> tuple[str, ...]:
        """See `ImageRecords`."""
        return tuple(self._builder.info.features[self.target_key].names)

    @property
    def identity(self) -> tuple[str, ...]:
        """See `ImageRecords`."""
        return self.image_key, self.target_key

    def encoded(self, key: str, split: str) -> Iterator[tuple[bytes, int]]:
        """Yields the encoded image and the label of each record of a split. Raises UserError if they are damaged."""
        self.count(key, split)
        with self.reading(split):
            for record in self.records(split):
                yield record[self.image_key], int(record[self.target_key])

    def empty(self, count: int, side: int) -> Batch:
        """See `ImageRecords`."""
        return {"labels": np.empty(count, np.int32)}

    def fill(self, arrays: Batch, row: int, record: Record, square: Square) -> None:
        """See `ImageRecords`."""
        arrays["labels"][row] = record[self.target_key]

    def targets(self, key: str, split: str, arrays: Batch) -> Batch:
        """See `ImageRecords`. Labels may neither be missing nor out of range."""
        labels = arrays["labels"]
        if (labels == -1).all():
            raise UserError(f"data.{key}={split} has no labels (all are -1); {self.others(key)}")
        if labels.min() < 0 or labels.max() >= len(self.class_names):
            raise UserError(
                f"{self.where(split)} has labels outside its {len(self.class_names)} classes; its files are damaged"
            )
        return {"label": labels}
