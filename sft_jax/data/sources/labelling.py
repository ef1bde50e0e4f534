"""How examples are labelled: with one class, any number of classes, a number or a mask; and what labels become."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from sft_jax.data.dataset import Batch, Dataset, with_targets
from sft_jax.data.sources.listing import Label
from sft_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Labelling:
    """A kind of labels.

    Attributes:
      name: its name in `LABELLINGS`.
      words: what each image has.
      targets: (labels of images, class names) -> their targets by name.
      classes_of: label -> the classes that it names.
    """

    name: str
    words: str
    targets: Callable[[Sequence[Label], Sequence[str]], Batch]
    classes_of: Callable[[Label], tuple[str, ...]]


def _one(labels: Sequence[Label], class_names: Sequence[str]) -> Batch:
    place = {name: number for number, name in enumerate(class_names)}
    return {"label": np.array([place[label] for label in labels], np.int32)}  # type: ignore[index]


def _several(labels: Sequence[Label], class_names: Sequence[str]) -> Batch:
    place = {name: number for number, name in enumerate(class_names)}
    table = np.zeros((len(labels), len(class_names)), np.uint8)
    for row, label in zip(table, labels, strict=True):
        row[[place[name] for name in label]] = 1  # type: ignore[union-attr]
    return {"labels": table}


def _number(labels: Sequence[Label], class_names: Sequence[str]) -> Batch:
    return {"number": np.array(labels, np.float32)}


def _files(labels: Sequence[Label], class_names: Sequence[str]) -> Batch:
    return {"mask": np.array([label[0] for label in labels], object)}  # type: ignore[index]


LABELLINGS = {
    labelling.name: labelling
    for labelling in (
        # {"label": int32 [n]}
        Labelling("class", "one class per image", _one, lambda label: (label,)),  # type: ignore[arg-type,return-value]
        # {"labels": uint8 [n, classes]}, 1 for the classes of an image
        Labelling("classes", "any number of labels per image", _several, lambda label: label),  # type: ignore[arg-type,return-value]
        # {"number": float32 [n]}
        Labelling("number", "a number per image", _number, lambda label: ()),
        # {"mask": the names of their files}, which `sources.masks` replaces by uint8 [n, side, side]
        Labelling("mask", "a mask per image", _files, lambda label: ()),
    )
}


def numbered(dataset: Dataset, source: str) -> Dataset:
    """Returns a dataset of classes whose names are numbers with these as targets: {"number": float32 [n]}.

    Raises:
      UserError: a name of a class is not a number.
    """
    values = np.array([number_of(name, f"a class of {source}") for name in dataset.class_names], np.float32)
    train, validation, test = (
        with_targets(split, {"number": values[split.labels]})
        for split in (dataset.train, dataset.validation, dataset.test)
    )
    notice = f"{source}: the names of its classes are the numbers to predict"
    notices = (*dataset.notices, notice)
    return Dataset(train, validation, test, ("number",), notices, dataset.square, dataset.record)


def number_of(text: str, what: str) -> float:
    """Parses a finite number. Raises UserError, which calls it `what`."""
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise UserError(f"{what} is {text!r}, not a number, which the task needs")
    return value
