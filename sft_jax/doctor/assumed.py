"""The shapes of a recipe's dataset, which is all that compiling needs: no images are read if there are none here."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from sft_jax import data
from sft_jax.data.dataset import ArraySplit, Batch, Dataset, Split
from sft_jax.data.images.reading import Reading
from sft_jax.data.sources.known import check_labelling, kind_of
from sft_jax.data.sources.labelling import numbered
from sft_jax.errors import UserError
from sft_jax.run.console import Console
from sft_jax.tasks import task_class
from sft_jax.training.start import read_dataset

# Images in the splits of well-known datasets.
KNOWN = {"cifar10": {"train": 50_000, "test": 10_000}, "cifar100": {"train": 50_000, "test": 10_000}}
# Images assumed to be in each split of another dataset that is not on this machine.
ASSUMED = 50_000


@dataclasses.dataclass(frozen=True)
class _StreamedShapes:
    """A `Split` of images uint8 [size, size, 3], all black, that is streamed."""

    targets: Batch
    size: int

    names = lengths = texts = None

    @property
    def labels(self) -> np.ndarray:
        return self.targets["label"]

    def __len__(self) -> int:
        return len(next(iter(self.targets.values())))

    def batches(self, order: np.ndarray) -> Iterator[Batch]:
        for rows in order:
            image = _black((len(rows), self.size, self.size, 3), np.uint8)
            yield {"image": image} | {name: target[rows] for name, target in self.targets.items()}

    def take(self, rows: np.ndarray) -> "_StreamedShapes":
        return dataclasses.replace(self, targets={name: target[rows] for name, target in self.targets.items()})


def dataset_shapes(config: ConfigDict, console: Console) -> tuple[Dataset, str]:
    """Returns a dataset like that of a run of `config`, of black images that take no memory, and a description of it.

    It is read only if it is on this machine.

    Raises:
      UserError: the dataset is unknown, has not the task's labels, or is one of files that are not here.
    """
    if _is_here(config):
        dataset = read_dataset(config, console)
        train, validation, test = (
            _blackened(split, _side(config)) for split in (dataset.train, dataset.validation, dataset.test)
        )
        where = f"{config.data.source}, which is on this machine"
        return dataclasses.replace(dataset, train=train, validation=validation, test=test), where
    labelling = task_class(config).labelling
    check_labelling(config.data, labelling)
    if labelling == "mask":
        raise UserError(
            f"{config.data.source} is not on this machine, and its classes cannot be told without its masks"
        )
    dataset, described = _assumed_tfds(config)
    return (numbered(dataset, config.data.source) if labelling == "number" else dataset), described


def _is_here(config: ConfigDict) -> bool:
    assumable = kind_of(config.data)[0] == "tfds"
    try:
        here, where = data.check_source(config.data)
    except UserError:
        if not assumable:
            raise
        return False  # it may be unobtainable here and yet there where the recipe is to run
    if not here and not assumable:
        raise UserError(f"{config.data.source} {where}; its shapes cannot be told before that")
    return here


def _side(config: ConfigDict) -> int:
    """Returns the side length at which image files are kept."""
    return Reading.of_config(config.data).square_of(config.data.size).side


def _blackened(split: Split, size: int) -> Split:
    if isinstance(split, ArraySplit):
        inputs = {name: _black(array.shape, array.dtype) for name, array in split.inputs.items()}
        return ArraySplit(inputs, split.targets, lengths=split.lengths)
    return _StreamedShapes(split.targets, size)


def _black(shape: tuple[int, ...], dtype) -> np.ndarray:
    return np.broadcast_to(np.zeros((), dtype), shape)


def _assumed_tfds(config: ConfigDict) -> tuple[Dataset, str]:
    """Derives the shapes from the dataset's description in tensorflow_datasets, which comes without its images."""
    import tensorflow_datasets as tfds

    _, name = kind_of(config.data)
    try:
        info = tfds.builder(name, data_dir=config.data.dir).info
        keys = config.data.image_key or "image", config.data.label_key or "label"
        image, label = (info.features[key] for key in keys)
        classes = tuple(label.names)
    except (tfds.core.registered.DatasetNotFoundError, KeyError, AttributeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"tfds:{name}: its shapes cannot be told without its images ({next(iter(str(error).splitlines()), '')}); "
            f"prepare it on this machine, or name it with --config.data.dir=FOLDER"
        ) from None
    lengths = {split: part.num_examples for split, part in info.splits.items()} or KNOWN.get(name)
    height, width, _ = image.shape
    fixed = height is not None and height == width

    def split(expression: str, limit: int | None) -> Split:
        count = ASSUMED if lengths is None else _count(expression, lengths)
        count = count if limit is None else min(limit, count)
        targets = {"label": np.arange(count, dtype=np.int32) % len(classes)}
        if not fixed:
            return _StreamedShapes(targets, _side(config))
        return ArraySplit({"image": _black((count, height, width, 3), np.uint8)}, targets)

    train = split(config.data.train, config.limit_train_examples)
    validation = split(config.data.validation, config.limit_eval_examples)
    test = split(config.data.test, config.limit_eval_examples)
    counts = " / ".join(f"{len(each):,}" for each in (train, validation, test))
    how = "of fixed size" if fixed else f"of many sizes, streamed at {_side(config)} px"
    known = "" if lengths else ", which is a guess"
    described = f"{config.data.source} is not on this machine; assumed: {counts} images {how}{known}"
    return Dataset(train, validation, test, classes), described


def _count(expression: str, lengths: dict[str, int]) -> int:
    """Returns the number of images in a split expression of tfds, e.g. "train[:45000]". Raises UserError."""
    import tensorflow_datasets as tfds

    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[count], num_bytes=0, filename_template=None)
        for name, count in lengths.items()
    }
    try:
        parts = tfds.core.ReadInstruction.from_spec(expression).to_absolute(infos)
    except (ValueError, KeyError, AssertionError) as error:
        raise UserError(f"split {expression!r}: {next(iter(str(error).splitlines()), '')}") from None
    return sum((lengths[part.splitname] if part.to is None else part.to) - (part.from_ or 0) for part in parts)
