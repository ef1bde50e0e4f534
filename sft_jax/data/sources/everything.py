"""All labelled images of a source, for a network that was trained on others."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from sft_jax.data.dataset import ArraySplit, Split
from sft_jax.data.images.reading import Reading
from sft_jax.data.images.square import Square
from sft_jax.data.sources.digits import load_digits
from sft_jax.data.sources.listing import Record, counted, some
from sft_jax.data.sources.load import kind_of, list_files
from sft_jax.data.sources.part_names import part_of
from sft_jax.data.sources.record import record_of
from sft_jax.data.sources.tfds import load_tfds, split_names
from sft_jax.errors import UserError


class Everything(NamedTuple):
    """Images to be scored: either files or splits.

    Attributes:
      paths: of files.
      labels: of these files as the network counts its classes.
      splits: images in arrays, each with the class of the network for each of its own labels.
      record: of the files, as those of the part "test".
    """

    paths: list[Path]
    labels: np.ndarray
    splits: list[tuple[Split, np.ndarray]]
    record: Record | None = None

    def __len__(self) -> int:
        return len(self.paths) + sum(len(split) for split, _ in self.splits)


def load_everything(
    config: ConfigDict, class_names: Sequence[str], split: str | None, notices: list[str], square: Square
) -> Everything:
    """Finds the images of `config.source`, whatever their part.

    Args:
      config: the part `data` of the configuration.
      class_names: of the network. Those of the source are found among them by name, and need not be all.
      split: only this part of a folder, table or of the digits, or this split of a tfds set; None for all.
      notices: gets lines about what is left out.
      square: what images go through before the network; those in arrays have gone through it.

    Raises:
      UserError: nothing there, or classes that the network does not have.
    """
    kind, rest = kind_of(config)
    if kind in ("folder", "csv"):
        return _files(kind, Path(rest), config, class_names, split, notices)
    if kind == "tfds":
        where = {"directory": config.dir, "download": config.download}
        names = [split] if split else split_names(rest, **where)
        notices.append(f"{config.source}: {counted(len(names), 'split')}, {' + '.join(names)}")
        keys = {"image_key": config.image_key, "label_key": config.label_key}
        reading = Reading(square=square)
        found = load_tfds(rest, **where, **keys, splits=("+".join(names),) * 3, size=config.size, reading=reading)
        notices += found.notices
        splits = [found.test]
    else:
        found = load_digits(config.source)
        parts = {"train": found.train, "val": found.validation, "test": found.test}
        wanted = [part for name, part in parts.items() if split is None or name == _part(split)]
        splits = [_fitted(part, square) for part in wanted]
    labels = [name for name, count in zip(found.class_names, _counts(splits, found.class_names), strict=True) if count]
    positions = _positions(config.source, labels, class_names, notices)
    table = np.array([positions.get(name, -1) for name in found.class_names], np.int32)
    return Everything([], np.zeros(0, np.int32), [(each, table) for each in splits])


def _files(
    kind: str, path: Path, config: ConfigDict, class_names: Sequence[str], split: str | None, notices: list[str]
) -> Everything:
    listing = list_files(kind, path, config, notices, known=class_names)
    files = [file for file in listing.files if split is None or file.part == _part(split)]
    if not files:
        raise UserError(f"{path} has no {split} part: leave --split away to score all that is there")
    counts = {part: sum(file.part == part for file in files) for part in dict.fromkeys(file.part for file in files)}
    if len(counts) > 1:
        words = ", ".join(f"{count:,} {part or 'in no part'}" for part, count in counts.items())
        notices.append(f"all parts of {path} are scored together: {words}; --split takes one")
    names = list(dict.fromkeys(file.class_name for file in files))
    positions = _positions(str(path), names, class_names, notices)
    return Everything(
        [listing.root / file.name for file in files],
        np.array([positions[file.class_name] for file in files], np.int32),
        [],
        record_of(listing, {"test": files}),
    )


def _fitted(split: Split, square: Square) -> ArraySplit:
    """A split of images of one size in memory, after `square`."""
    batch = next(split.batches(np.arange(len(split))[None]))
    return ArraySplit.of_images(np.stack([square.of_array(image) for image in batch["image"]]), batch["label"])


def _part(split: str) -> str:
    part = part_of(split)
    if part is None:
        raise UserError(f"--split {split!r} must be train, validation or test here")
    return part


def _counts(splits: Sequence[Split], class_names: Sequence[str]) -> np.ndarray:
    return sum((np.bincount(split.labels, minlength=len(class_names)) for split in splits), np.zeros(1, np.int64))


def _positions(where: str, names: Sequence[str], known: Sequence[str], notices: list[str]) -> dict[str, int]:
    """Which of the network's classes `known` each of `names` is. Raises UserError where one is none of them."""
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
            f"{where} has classes that the network does not know: {some(shown)}; rename them as the network does, or "
            f"leave them out"
        )
    missing = [name for name in known if name not in names]
    if missing:
        notices.append(
            f"{where} has no image of {len(missing):,} of the network's {len(known):,} classes: {some(missing)}"
        )
    return positions
