"""Labelled images in memory or decoded on demand, behind one interface."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import grain
import numpy as np

from sft_jax.data.images.square import Square
from sft_jax.data.sources.listing import Record

# Pictures are decoded outside Python's lock, so threads keep the cores busy; the buffer holds whole batches.
DECODING_THREADS = 16
BUFFERED_BATCHES = 4


class Split(Protocol):
    """Images with their labels, int32 [n]."""

    @property
    def labels(self) -> np.ndarray:
        """Of all images, int32 [n]."""

    @property
    def names(self) -> Sequence[str] | None:
        """Of their files, where there are any."""

    def __len__(self) -> int: ...

    def batches(self, order: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The images of each row of `order` int [steps, batch]: (uint8 [batch, height, width, 3], int32 [batch])."""

    def take(self, rows: np.ndarray) -> "Split":
        """The split of these rows only, in this order."""


@dataclasses.dataclass(frozen=True)
class ArraySplit:
    """A split in memory: images uint8 [n, height, width, 3], labels int32 [n], and the names of their files."""

    images: np.ndarray
    labels: np.ndarray
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[-1] != 3:
            raise TypeError(f"images must be uint8 [n, height, width, 3], not {self.images.dtype} {self.images.shape}")
        if self.labels.dtype != np.int32 or self.labels.shape != self.images.shape[:1]:
            raise TypeError(f"labels must be int32 [{len(self.images)}], not {self.labels.dtype} {self.labels.shape}")

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, order: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See `Split`."""
        for rows in order:
            yield self.images[rows], self.labels[rows]

    def take(self, rows: np.ndarray) -> "ArraySplit":
        """See `Split`."""
        return ArraySplit(self.images[rows], self.labels[rows], _taken(self.names, rows))


@dataclasses.dataclass(frozen=True)
class FeatureSplit(ArraySplit):
    """What a network makes of the images of a split: float32 [n, views, channels] in place of them."""

    def __post_init__(self) -> None:
        if self.images.dtype != np.float32 or self.images.ndim != 3 or len(self.images) != len(self.labels):
            raise TypeError(
                f"features must be float32 [n, views, channels], not {self.images.dtype} {self.images.shape}"
            )


@dataclasses.dataclass(frozen=True)
class StreamedSplit:
    """A split whose images are decoded when they are needed.

    Attributes:
      decode: row -> image uint8 [size, size, 3].
      rows: the rows of this split, as `decode` counts them.
      labels: int32 [n], of `rows`.
      names: of their files, if there are any.
    """

    decode: Callable[[int], np.ndarray]
    rows: np.ndarray
    labels: np.ndarray
    names: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, order: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See `Split`. The next batches are decoded in the background."""
        # What Pillow warns of was told, with the files' names, when the images were looked at first.
        warnings.filterwarnings("ignore", module=r"PIL\b")
        batch = order.shape[1]
        pictures = grain.MapDataset.source(self.rows[order.ravel()]).map(self.decode)
        options = grain.ReadOptions(num_threads=DECODING_THREADS, prefetch_buffer_size=BUFFERED_BATCHES * batch)
        images = pictures.to_iter_dataset(options).batch(batch)
        for block, rows in zip(images, order, strict=True):
            yield block, self.labels[rows]

    def take(self, rows: np.ndarray) -> "StreamedSplit":
        """See `Split`."""
        return StreamedSplit(self.decode, self.rows[rows], self.labels[rows], _taken(self.names, rows))


def _taken(names: Sequence[str] | None, rows: np.ndarray) -> Sequence[str] | None:
    return None if names is None else [names[row] for row in rows]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Three splits of labelled images.

    Attributes:
      train, validation, test: the splits.
      class_names: label = position.
      notices: what the user should be told about them.
      square: what the images went through.
      record: what a run records of them.
    """

    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    notices: tuple[str, ...] = ()
    square: Square | None = None
    record: Record | None = None
