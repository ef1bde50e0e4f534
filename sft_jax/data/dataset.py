"""Datasets and their splits, in memory or decoded on demand, behind one interface."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import grain
import numpy as np

from sft_jax.data.images.square import Square
from sft_jax.data.sources.listing import Record
from sft_jax.data.texts.reading import TextReading

# Images are decoded without holding the GIL, so that threads use all cores; the buffer holds whole batches.
DECODING_THREADS = 16
BUFFERED_BATCHES = 4

# Arrays by name, each with the examples on its first axis: {"image": uint8 [n, h, w, 3], "label": int32 [n]}. Images
# may have other targets instead, see `sources.labelling`.
Batch = dict[str, np.ndarray]
T = TypeVar("T")


class Split(Protocol):
    """Examples with their targets."""

    @property
    def targets(self) -> Batch:
        """Targets of all examples by name, e.g. `{"label": int32 [n]}`; always in memory."""

    @property
    def labels(self) -> np.ndarray:
        """The target "label" of all examples, int32 [n]; only where each has one class."""

    @property
    def names(self) -> Sequence[str] | None:
        """File names of all examples, None if they are not files."""

    @property
    def lengths(self) -> "Lengths | None":
        """Lengths of all examples, None if they are alike."""

    @property
    def texts(self) -> "Sequence[tuple[str, ...]] | None":
        """Texts of all examples, each one or a pair; None if they are images."""

    def __len__(self) -> int: ...

    def batches(self, order: np.ndarray) -> Iterator[Batch]:
        """Yields the examples of each row of `order` int [steps, batch]: inputs and targets by name."""

    def take(self, rows: np.ndarray) -> "Split":
        """Returns a split of the examples at these indices, in this order."""


@dataclasses.dataclass(frozen=True)
class Lengths:
    """The lengths of the examples of a split, whose inputs [n, longest, ...] end with padding.

    Attributes:
      each: int32 [n].
      buckets: lengths to which batches are cut, in ascending order: each to the first that fits its examples. As many
        programs are compiled.
    """

    each: np.ndarray
    buckets: tuple[int, ...]

    def of_steps(self, order: np.ndarray) -> np.ndarray:
        """Returns the bucket of each step of `order` int [steps, batch]: int [steps]."""
        return np.array(self.buckets)[np.searchsorted(self.buckets, self.each[order].max(1))]


@dataclasses.dataclass(frozen=True)
class ArraySplit:
    """A split in memory.

    Attributes:
      inputs: inputs of the network by name, e.g. `{"image": uint8 [n, height, width, 3]}`.
      targets: see `Split`.
      names: see `Split`.
      lengths: of its inputs; None if all examples are alike.
      texts: of which the inputs were made, each one or a pair; None if they were made of images.
    """

    inputs: Batch
    targets: Batch
    names: Sequence[str] | None = None
    lengths: Lengths | None = None
    texts: Sequence[tuple[str, ...]] | None = None

    @classmethod
    def of_images(cls, images: np.ndarray, labels: np.ndarray, names: Sequence[str] | None = None) -> "ArraySplit":
        """Makes a split of images uint8 [n, height, width, 3] and labels int32 [n].

        Raises:
          TypeError: the dtypes or shapes are different.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise TypeError(f"images must be uint8 [n, height, width, 3], not {images.dtype} {images.shape}")
        if labels.dtype != np.int32 or labels.shape != images.shape[:1]:
            raise TypeError(f"labels must be int32 [{len(images)}], not {labels.dtype} {labels.shape}")
        return cls({"image": images}, {"label": labels}, names)

    @property
    def images(self) -> np.ndarray:
        """The input "image", uint8 [n, height, width, 3]."""
        return self.inputs["image"]

    @property
    def labels(self) -> np.ndarray:
        """See `Split`."""
        return self.targets["label"]

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        return sum(array.nbytes for array in (*self.inputs.values(), *self.targets.values()))

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def batches(self, order: np.ndarray) -> Iterator[Batch]:
        """See `Split`."""
        for rows in order:
            yield _rows(self.inputs | self.targets, rows)

    def take(self, rows: np.ndarray) -> "ArraySplit":
        """See `Split`."""
        lengths = self.lengths and Lengths(self.lengths.each[rows], self.lengths.buckets)
        names, texts = _taken(self.names, rows), _taken(self.texts, rows)
        return ArraySplit(_rows(self.inputs, rows), _rows(self.targets, rows), names, lengths, texts)


@dataclasses.dataclass(frozen=True)
class StreamedSplit:
    """A split whose inputs, all of the same shape, are decoded on demand.

    Attributes:
      decode: index -> inputs of one example by name, e.g. `{"image": uint8 [size, size, 3]}`.
      rows: indices of the examples, for `decode`.
      targets: targets of `rows`, see `Split`.
      names: file names of `rows`, see `Split`.
    """

    decode: Callable[[int], Batch]
    rows: np.ndarray
    targets: Batch
    names: Sequence[str] | None = None
    lengths: None = None
    texts: None = None

    @classmethod
    def of_images(
        cls,
        decode: Callable[[int], np.ndarray],
        rows: np.ndarray,
        labels: np.ndarray,
        names: Sequence[str] | None = None,
    ) -> "StreamedSplit":
        """Makes a split of images, decoded by `decode` to uint8 [size, size, 3], and labels int32 [n]."""
        return cls(lambda row: {"image": decode(row)}, rows, {"label": labels}, names)

    @property
    def labels(self) -> np.ndarray:
        """See `Split`."""
        return self.targets["label"]

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, order: np.ndarray) -> Iterator[Batch]:
        """See `Split`. The next batches are decoded in the background."""
        # Pillow's warnings were reported with file names when the images were checked.
        warnings.filterwarnings("ignore", module=r"PIL\b")
        batch = order.shape[1]
        inputs = grain.MapDataset.source(self.rows[order.ravel()]).map(self.decode)
        options = grain.ReadOptions(num_threads=DECODING_THREADS, prefetch_buffer_size=BUFFERED_BATCHES * batch)
        for block, rows in zip(inputs.to_iter_dataset(options).batch(batch), order, strict=True):
            yield block | _rows(self.targets, rows)

    def take(self, rows: np.ndarray) -> "StreamedSplit":
        """See `Split`."""
        return StreamedSplit(self.decode, self.rows[rows], _rows(self.targets, rows), _taken(self.names, rows))


def with_targets(split: Split, targets: Batch) -> Split:
    """Returns a split with other targets."""
    return dataclasses.replace(split, targets=targets)  # type: ignore[type-var]  # every split is a dataclass


def _rows(arrays: Batch, rows: np.ndarray) -> Batch:
    return {name: array[rows] for name, array in arrays.items()}


def _taken(values: Sequence[T] | None, rows: np.ndarray) -> Sequence[T] | None:
    return None if values is None else [values[row] for row in rows]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Three splits of labelled images or texts.

    Attributes:
      train, validation, test: the splits.
      class_names: names of the network's outputs: classes in label order, or the name of a number.
      notices: messages about the examples for the user.
      square: how images were resized to squares.
      record: a run's record of the examples.
      reading: how texts became tokens; None of images.
    """

    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    notices: tuple[str, ...] = ()
    square: Square | None = None
    record: Record | None = None
    reading: TextReading | None = None
