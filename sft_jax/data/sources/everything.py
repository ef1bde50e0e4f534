"""All labelled images of a source, for evaluating a network that was trained on other data."""

import difflib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from ml_collections import ConfigDict

from sft_jax.data.dataset import ArraySplit, Batch, Split, with_targets
from sft_jax.data.images import mask
from sft_jax.data.images.reading import Reading
from sft_jax.data.images.segments import Segments
from sft_jax.data.images.square import Square
from sft_jax.data.sources.digits import load_digits
from sft_jax.data.sources.known import check_kind, check_labelling, kind_of, source_of
from sft_jax.data.sources.labelling import LABELLINGS, number_of, numbered
from sft_jax.data.sources.listing import LabelledFile, Record, counted, some
from sft_jax.data.sources.lists import list_files
from sft_jax.data.sources.part_names import named_part
from sft_jax.data.sources.record import record_of
from sft_jax.data.sources.texts.examples import Example
from sft_jax.data.sources.tfds import load_tfds, split_names
from sft_jax.errors import UserError

# What names its split.
P = TypeVar("P", LabelledFile, Example)


class Everything(NamedTuple):
    """Images to evaluate: either files or splits.

    Attributes:
      paths: the image files.
      targets: their targets, with class indices of the network; of masks {"mask": `MaskFile`s}.
      splits: splits in memory, with class indices of the network.
      record: a record of the files, as a test split.
    """

    paths: list[Path]
    targets: Batch
    splits: list[Split]
    record: Record | None = None

    def __len__(self) -> int:
        return len(self.paths) + sum(map(len, self.splits))


class MaskFile(NamedTuple):
    """The mask of an image, its segments if it is panoptic, and what its values become.

    Attributes:
      path: the file.
      table: uint8 [256], class indices of the network or `VOID`.
      segments: see `Pair`.
    """

    path: Path
    table: np.ndarray
    segments: Segments | None

    def values(self) -> np.ndarray:
        """Reads the mask: uint8 [height, width], with class indices of the network. Raises UserError."""
        return self.table[mask.values(self.path, self.segments)]


def load_everything(
    config: ConfigDict,
    class_names: Sequence[str],
    split: str | None,
    notices: list[str],
    square: Square,
    labelling: str = "class",
) -> Everything:
    """Collects the images of `config.source`, from all splits unless `split` names one.

    Args:
      config: the section `data` of the config.
      class_names: classes of the network; the source's classes are matched by name and may be a subset.
      split: the only split to use; None for all.
      notices: receives a line about anything that is skipped.
      square: host-side preprocessing of the network; already applied to images in arrays.
      labelling: a key of `LABELLINGS`: what the network has learnt to say of an image.

    Raises:
      UserError: there are no images, the network does not have their classes, or they have no such labels.
    """
    kind, rest = kind_of(config)
    check_kind(config, of_texts=False)
    check_labelling(config, labelling)
    if labelling == "mask":
        return _masks(rest, config, class_names, split, notices)
    if source_of(config).of_files:
        return _files(kind, rest, config, class_names, split, notices, labelling)
    if kind == "tfds":
        where = {"directory": config.dir, "download": config.download}
        whole = of_tfds(rest, split, notices, **where)
        keys = {"image_key": config.image_key, "label_key": config.label_key}
        reading = Reading(square=square)
        dataset = load_tfds(rest, **where, **keys, splits=(whole,) * 3, size=config.size, reading=reading)
    else:
        dataset = load_digits(config.source)
    dataset = numbered(dataset, config.source) if labelling == "number" else dataset
    notices += dataset.notices
    if kind == "tfds":
        splits = [dataset.test]
    else:
        parts = {"train": dataset.train, "val": dataset.validation, "test": dataset.test}
        wanted = [part for name, part in parts.items() if split is None or name == named_part(split)]
        splits = [_fitted(part, square) for part in wanted]
    if labelling == "number":
        return Everything([], {}, splits)
    counts = _counts(splits, dataset.class_names)
    labels = [name for name, count in zip(dataset.class_names, counts, strict=True) if count]
    positions = matched(config.source, labels, class_names, notices)
    table = np.array([positions.get(name, -1) for name in dataset.class_names], np.int32)
    return Everything([], {}, [with_targets(each, {"label": table[each.labels]}) for each in splits])


def _files(
    kind: str,
    path: str,
    config: ConfigDict,
    class_names: Sequence[str],
    split: str | None,
    notices: list[str],
    labelling: str,
) -> Everything:
    listing = list_files(kind, path, config, notices, class_names if labelling != "number" else None, labelling)
    files = of_split(path, listing.files, split, notices)
    kinds, labels = LABELLINGS[labelling], [file.label for file in files]
    if labelling == "number":
        labels = [number_of(str(label), f"the label of {file.name}") for file, label in zip(files, labels, strict=True)]
    else:
        names = dict.fromkeys(name for label in labels for name in kinds.classes_of(label))
        matched(path, list(names), class_names, notices)
    targets = kinds.targets(labels, class_names)
    return Everything([listing.root / file.name for file in files], targets, [], record_of(listing, {"test": files}))


def _masks(
    path: str, config: ConfigDict, class_names: Sequence[str], split: str | None, notices: list[str]
) -> Everything:
    lister, ignored = source_of(config).list_masks, config.ignore_index
    if lister is None:
        raise UserError(
            f"{config.source}: masks are evaluated from files, of masks:PATH, voc:PATH or panoptic:PATH; for a "
            f"split of a run's own dataset use --split instead of --data"
        )
    listing = lister(Path(path), ignored, notices)
    files = of_split(path, listing.files, split, notices)
    names = listing.class_names
    places = matched(path, names, class_names, notices)
    table = np.full(mask.VOID + 1, mask.VOID, np.uint8)
    table[: len(names)] = [places[name] for name in names]
    if ignored is not None:
        table[ignored] = mask.VOID
    masks = np.empty(len(files), object)
    own = [str(file.label[0]) for file in files]  # type: ignore[index]
    masks[:] = [MaskFile(listing.root / name, table, listing.segments.get(name)) for name in own]
    paths = [listing.root / file.name for file in files]
    return Everything(paths, {"mask": masks}, [], record_of(listing, {"test": files}))


def of_split(where: str, listed: Sequence[P], split: str | None, notices: list[str], unit: str = "image") -> list[P]:
    """Returns the examples of `split`, or all; `notices` receives a line if they are of several splits.

    Raises:
      UserError: there are none.
    """
    chosen = [each for each in listed if split is None or each.part == named_part(split)]
    if not chosen:
        raise UserError(f"{where} has no {split} split; drop --split to evaluate all of its {unit}s")
    counts = Counter(each.part for each in chosen)
    if len(counts) > 1:
        words = ", ".join(f"{count:,} {part or 'in no split'}" for part, count in counts.items())
        notices.append(f"all splits of {where} together: {words}; --split chooses one")
    return chosen


def of_tfds(name: str, split: str | None, notices: list[str], **where: Any) -> str:
    """Returns `split`, or all splits of a dataset of tfds as one expression; `notices` receives a line.

    `where` are arguments of `split_names`. Raises UserError like it.
    """
    names = [split] if split else split_names(name, **where)
    notices.append(f"tfds:{name}: {counted(len(names), 'split')}, {' + '.join(names)}")
    return "+".join(names)


def _fitted(split: Split, square: Square) -> ArraySplit:
    """Applies `square` to a split in memory whose images have one size."""
    batch = next(split.batches(np.arange(len(split))[None]))
    return ArraySplit({"image": np.stack([square.of_array(image) for image in batch["image"]])}, split.targets)


def _counts(splits: Sequence[Split], class_names: Sequence[str]) -> np.ndarray:
    return sum((np.bincount(split.labels, minlength=len(class_names)) for split in splits), np.zeros(1, np.int64))


def matched(
    where: str, names: Sequence[str], known: Sequence[str], notices: list[str], unit: str = "image"
) -> dict[str, int]:
    """Maps each of `names` to its index in the network's classes `known`. Raises UserError if one is missing."""
    positions = {name: number for number, name in enumerate(known)}
    unknown = [name for name in names if name not in positions]
    if unknown:
        near = {name: difflib.get_close_matches(name, known, n=1, cutoff=0.6) for name in unknown}
        folded = {name.casefold(): name for name in known}
        shown = []
        for name in unknown:
            like = folded.get(name.casefold()) or next(iter(near[name]), None)
            shown.append(f"{name!r} (the nearest is {like!r})" if like else repr(name))
        raise UserError(
            f"{where} has classes that the network does not have: {some(shown)}; rename them to the network's, or "
            f"remove them"
        )
    missing = [name for name in known if name not in names]
    if missing:
        notices.append(
            f"{where} has no {unit}s of {len(missing):,} of the network's {len(known):,} classes: {some(missing)}"
        )
    return positions
