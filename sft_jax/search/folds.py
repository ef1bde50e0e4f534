"""The data that trials are scored on: the validation split, or folds of the training split."""

import dataclasses

import numpy as np

from sft_jax.data import Dataset
from sft_jax.data.sampling import folds as dealt


class Folds:
    """The sequence of datasets that a trial is trained and scored on.

    With `count` of 1 it is the whole dataset with its validation split. With more it is a cross-validation on the
    training split, stratified if each image has one class: each fold is scored by a network trained on the others
    (Kohavi, 1995), and the validation and test splits are not used.

    Raises:
      UserError: a class has fewer training images than there are folds.
    """

    def __init__(self, dataset: Dataset, count: int, seed: int):
        self._dataset, self.count = dataset, count
        # Without classes, there is nothing to stratify by.
        labels = dataset.train.targets.get("label", np.zeros(len(dataset.train), np.int32))
        self._rows = dealt(labels, count, seed) if count > 1 else []

    def __getitem__(self, index: int) -> Dataset:
        if self.count == 1:
            return self._dataset
        train = self._dataset.train
        rest = np.sort(np.concatenate([rows for other, rows in enumerate(self._rows) if other != index]))
        # Truncated to the same length for every fold, so that one compiled program serves all.
        shortest = len(train) - max(map(len, self._rows))
        kept = np.delete(rest, np.random.default_rng(index).permutation(len(rest))[: len(rest) - shortest])
        held_out = train.take(self._rows[index])
        return dataclasses.replace(self._dataset, train=train.take(kept), validation=held_out, test=held_out)

    def __str__(self) -> str:
        if self.count == 1:
            return f"{len(self._dataset.validation):,} validation images"
        return f"{self.count} folds of the {len(self._dataset.train):,} training images"
