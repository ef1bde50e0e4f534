"""Loads the `Dataset` that `config.data` describes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from sft_jax.data.dataset import Dataset, Split
from sft_jax.data.images.reading import Reading
from sft_jax.data.images.square import Square
from sft_jax.data.sampling import per_class
from sft_jax.data.sources.known import SOURCES, Request, check_kind, check_labelling, kind_of
from sft_jax.data.sources.labelling import numbered
from sft_jax.data.sources.listing import Record
from sft_jax.data.texts.reading import TextReading
from sft_jax.errors import UserError


def load_dataset(
    config: ConfigDict,
    *,
    seed: int,
    limit_train: int | None = None,
    limit_eval: int | None = None,
    once: bool = False,
    recorded: Record | None = None,
    resuming: bool = False,
    old_seed: int | None = None,
    square: Square | None = None,
    progress: Callable[[int, int], None] | None = None,
    labelling: str = "class",
    texts: TextReading | None = None,
) -> Dataset:
    """Loads the dataset of `config`, the section `data` of the config.

    Args:
      config: the section. Keys for processing on the device are ignored.
      seed: seed for the subsets drawn by `per_class` and the limits.
      limit_train: maximum number of training images, drawn at random.
      limit_eval: maximum number of validation and of test images, drawn at random.
      once: each image is needed at most once: files are decoded on demand and not checked beforehand.
      recorded: the record of an existing run, whose images are to be used.
      resuming: whether that run is being resumed.
      old_seed: seed of a run from before runs recorded their images, when it determined the splits of a folder.
      square: host-side preprocessing of a trained network, see `Dataset`.
      progress: called with the number of images read so far and the total.
      labelling: a key of `LABELLINGS`: what each image is labelled with.
      texts: how texts are read; None for images.

    Raises:
      UserError: the source is unknown or unreadable, has no such labels, or does not have the recorded images.
    """
    kind, rest = kind_of(config)
    check_kind(config, of_texts=texts is not None)
    check_labelling(config, labelling)
    reading = dataclasses.replace(Reading.of_config(config), square=square, check=not once)
    if progress is not None:
        reading = dataclasses.replace(reading, progress=progress)
    dataset = SOURCES[kind].load(rest, config, Request(reading, once, recorded, resuming, old_seed, labelling, texts))
    if dataset.record is None:
        directory = config.dir and str(Path(config.dir).absolute())
        dataset = dataclasses.replace(dataset, record=Record(dataset.class_names, directory))
    if recorded is not None and recorded.class_names != dataset.class_names:
        raise UserError(f"the classes of {config.source} differ from those of the run; name the run's dataset")
    if labelling == "number" and "label" in dataset.train.targets:
        dataset = numbered(dataset, config.source)
    train = dataset.train
    if config.per_class is not None:
        train = train.take(per_class(train.labels, config.per_class, seed))
    return dataclasses.replace(
        dataset,
        train=_limited(train, limit_train, seed),
        validation=_limited(dataset.validation, limit_eval, seed),
        test=_limited(dataset.test, limit_eval, seed),
    )


def _limited(split: Split, limit: int | None, seed: int) -> Split:
    if limit is None or limit >= len(split):
        return split
    return split.take(np.sort(np.random.default_rng(seed).permutation(len(split))[:limit]))
