"""A first look at data: what kind of source a path is, how many images it has, and how large they are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from sft_jax.config import complete, flatten
from sft_jax.data.dataset import ArraySplit
from sft_jax.data.images.formats import UNREADABLE
from sft_jax.data.images.survey import look
from sft_jax.data.sampling import spread
from sft_jax.data.sources.known import SOURCES, check_labelling, kind_of, source_of
from sft_jax.data.sources.listing import Listing, some
from sft_jax.data.sources.lists import list_files
from sft_jax.data.sources.part_names import part_of
from sft_jax.data.sources.parts import decided
from sft_jax.data.sources.tfds import split_names
from sft_jax.errors import UserError
from sft_jax.run.console import Console
from sft_jax.tasks import check_settings, task_class
from sft_jax.training.start import read_dataset

# Image files whose headers are read.
SAMPLE = 300
# Classes with fewer training images are named.
FEW = 10
# Files that only Hugging Face's image sets have.
HUGGING_FACE = ("*.parquet", "metadata.csv", "metadata.jsonl")
# Side in pixels at which images of other sources are read if they are of many sizes.
USUAL_SIDE = 224


class Sight(NamedTuple):
    """What is known of a dataset before it is read.

    Attributes:
      counts: number of images by split.
      classes: training images of each class by name; None if an image has several labels or a number.
      sides: width and height, int [n, 2], of training images, a sample of them.
      lines: about the splits and about classes with few images.
    """

    counts: Mapping[str, int]
    classes: Mapping[str, int] | None
    sides: np.ndarray
    lines: list[str]


def named_source(path: str) -> str:
    """Returns the `data.source` that `path` names: a folder, a table, or a source with its prefix. Raises UserError."""
    kind, colon, rest = path.partition(":")
    if kind in SOURCES and (colon or not SOURCES[kind].is_named):
        return f"{kind}:{Path(rest).expanduser().absolute()}" if SOURCES[kind].is_path else path
    place = Path(path).expanduser().absolute()
    if not place.exists():
        forms = ", ".join(source.form for source in SOURCES.values())
        raise UserError(f"there is no folder or table {path}; name one, or one of {forms}")
    return f"{_kind_of(place)}:{place}"


def _kind_of(place: Path) -> str:
    """Returns the kind of source of an existing folder or file; of a folder, by what lies in it and one folder down."""
    if place.is_file():
        return "hf" if place.suffix == ".parquet" else "csv"
    found = (path for folder in ("", "*/") for name in HUGGING_FACE for path in place.glob(f"{folder}{name}"))
    return "hf" if any(found) else "folder"


def splits_of(config: ConfigDict, given: Mapping[str, Any]) -> dict[str, str]:
    """Returns the split expressions for a source that needs them: existing splits, and parts of train for the others.

    Nothing for other sources, and if the user gave any.
    """
    keys = ("data.train", "data.validation", "data.test")
    if not source_of(config.data).has_splits or any(key in given for key in keys):
        return {}
    names = split_names(kind_of(config.data)[1], directory=config.data.dir, download=config.data.download)
    by_part = {part_of(name): name for name in reversed(names)}
    whole = by_part.get("train", names[0])
    validation, test = by_part.get("val"), by_part.get("test")
    if validation and test:
        return dict(zip(keys, (whole, validation, test), strict=True))
    if test:
        return dict(zip(keys, (f"{whole}[:90%]", f"{whole}[90%:]", test), strict=True))
    if validation:
        return dict(zip(keys, (f"{whole}[:90%]", validation, f"{whole}[90%:]"), strict=True))
    return dict(zip(keys, (f"{whole}[:80%]", f"{whole}[80%:90%]", f"{whole}[90%:]"), strict=True))


def look_at(config: ConfigDict, console: Console) -> Sight:
    """Looks at the dataset of `config`; decodes no files. Raises UserError as reading it would."""
    check_settings(config)
    labelling = task_class(config).labelling
    check_labelling(config.data, labelling)
    kind, rest = kind_of(config.data)
    if SOURCES[kind].of_files:
        notices: list[str] = []
        listing = list_files(kind, rest, config.data, notices, labelling=labelling)
        return _of_files(listing, notices, config.data.max_pixels)
    dataset = read_dataset(complete(flatten(config) | {"data.size": USUAL_SIDE}), console)
    splits = {"train": dataset.train, "val": dataset.validation, "test": dataset.test}
    shape = dataset.train.images.shape[1:3] if isinstance(dataset.train, ArraySplit) else (USUAL_SIDE,) * 2
    labels = dataset.train.targets.get("label")
    names = dataset.class_names
    classes = None if labels is None else dict(zip(names, np.bincount(labels, minlength=len(names)), strict=True))
    lines = list(dataset.notices)
    if source_of(config.data).has_splits:
        lines.append(f"train / validation / test: {config.data.train} / {config.data.validation} / {config.data.test}")
    counts = {part: len(split) for part, split in splits.items()}
    return Sight(counts, classes, np.array([shape[::-1]]), [*lines, *_few(classes)])


def _of_files(listing: Listing, notices: list[str], max_pixels: int) -> Sight:
    parts = decided(listing, notices)
    if all(file.part for file in listing.files):
        notices.append("the splits are those of the source")
    train = parts["train"]
    rows = spread(np.arange(len(train)), SAMPLE)
    sides = []
    for row in rows:
        try:
            sides.append(look(listing.root / train[row].name, thorough=False, max_pixels=max_pixels).size)
        except UNREADABLE:
            continue  # the run reports it
    classes = None
    if listing.labelling == "class":
        classes = dict.fromkeys(listing.class_names, 0)
        for file in train:
            classes[str(file.label)] += 1
    counts = {part: len(files) for part, files in parts.items()}
    return Sight(counts, classes, np.array(sides or [(1, 1)]), [*notices, *_few(classes)])


def _few(classes: Mapping[str, int] | None) -> list[str]:
    """Names the classes with few images. Raises UserError if one has a single one or none."""
    if classes is None:
        return []
    alone = [name for name, count in classes.items() if count < 2]
    if alone:
        raise UserError(
            f"too few training images to learn from, fewer than 2: {some(map(repr, alone))}; add images of "
            f"{'it' if len(alone) == 1 else 'them'}, or remove {'the class' if len(alone) == 1 else 'these classes'}"
        )
    few = [f"{name!r} ({count})" for name, count in sorted(classes.items(), key=lambda item: item[1]) if count < FEW]
    return [f"classes with few training images, of which little can be expected: {some(few)}"] if few else []
