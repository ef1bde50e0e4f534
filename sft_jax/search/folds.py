"""What trials are scored on: the validation split, or the parts of the training split in turn."""

import dataclasses

import numpy as np

from sft_jax.data import Dataset
from sft_jax.data.sampling import folds as dealt


class Folds:
    """The data sets that a trial trains and is scored on, one after the other.

    With `count` of 1 there is one: the whole data set with its own validation split. With more, the training split is
    dealt out class by class; each fold is scored by a network trained on the others (Kohavi, 1995), and neither the
    validation nor the test split is read.

    Raises:
      UserError: a class has fewer training images than there are folds.
    """

    def __init__(self, dataset: Dataset, count: int, seed: int):
        self._dataset, self.count = dataset, count
        self._rows = dealt(dataset.train.labels, count, seed) if count > 1 else []

    def __getitem__(self, index: int) -> Dataset:
        if self.count == 1:
            return self._dataset
        train = self._dataset.train
        rest = np.sort(np.concatenate([rows for other, rows in enumerate(self._rows) if other != index]))
        # Of the same length for every fold, so that one compiled program serves all: an image less where they differ.
        shortest = len(train) - max(map(len, self._rows))
        kept = np.delete(rest, np.random.default_rng(index).permutation(len(rest))[: len(rest) - shortest])
        held_out = train.take(self._rows[index])
        return dataclasses.replace(self._dataset, train=train.take(kept), validation=held_out, test=held_out)

    def __str__(self) -> str:
        if self.count == 1:
            return f"{len(self._dataset.validation):,} validation images"
        return f"{self.count} folds of the {len(self._dataset.train):,} training images"
