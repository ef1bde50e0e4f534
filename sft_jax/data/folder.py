"""Your own images: a folder for each class."""

from pathlib import Path

import numpy as np
import psutil

from sft_jax.data.decoding import decoded_split, streamed_split
from sft_jax.data.image_files import SUFFIXES, find_images, subfolders
from sft_jax.data.strata import stratified
from sft_jax.data.types import Dataset, Split
from sft_jax.errors import UserError

# Of each part: its pictures and their labels.
Files = dict[str, tuple[list[Path], np.ndarray]]

# Shares of a folder that has no parts of its own.
TRAIN_SHARE, VALIDATION_SHARE, TEST_SHARE = 0.8, 0.1, 0.1
# Decoded images may take this share of the memory that is free.
MEMORY_SHARE = 0.5


def load_folder(path: str | Path, size: int, seed: int, *, memory_bytes: int | None = None) -> Dataset:
    """Reads PATH/train/CLASS/*, PATH/val/CLASS/* (or validation) and PATH/test/CLASS/*.

    Parts that are missing are taken from the others, at random (by `seed`) and class by class, and the notices say so:
    without train/, PATH/CLASS/* is split in 80 % training, 10 % validation and 10 % test images. Files and folders
    whose name begins with a dot are ignored, files that are no pictures are counted in a notice.

    Args:
      path: the folder.
      size: side in pixels to which images are brought (see `to_square`).
      seed: of the split.
      memory_bytes: memory that images may take; where they need more they are decoded when they are used. Default: half
        of what is free.

    Raises:
      UserError: nothing there, fewer than two classes, an empty class, classes that differ, unreadable pictures.
    """
    root = Path(path)
    notices: list[str] = []
    try:
        files, class_names = _listed(root, notices)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
    _fill_parts(files, seed, notices)

    needed = sum(len(labels) for _, labels in files.values()) * size * size * 3
    if memory_bytes is None:
        memory_bytes = int(MEMORY_SHARE * psutil.virtual_memory().available)
    if needed > memory_bytes:
        notices.append(f"the images need {needed / 2**30:.1f} GiB of memory: they are decoded again in every epoch")

    def read(name: str) -> Split:
        return (streamed_split if needed > memory_bytes else decoded_split)(root, *files[name], size)

    splits = {name: read(name) for name in files}
    return Dataset(splits["train"], splits["val"], splits["test"], class_names, tuple(notices))


def _listed(root: Path, notices: list[str]) -> tuple[Files, tuple[str, ...]]:
    """The pictures of the parts that there are, and the names of the classes. Raises UserError, OSError."""
    if not root.is_dir():
        raise UserError(f"data.source=folder:{root}: there is no such folder")
    parts = {name: _part(root, name) for name in ("train", "val", "test")}
    whole = parts["train"] or root
    class_names = _classes(whole)
    files = {name: _files(part, class_names, notices) for name, part in parts.items() if part is not None}
    if "train" not in files:
        files["train"] = _files(root, class_names, notices)
    return files, class_names


def _part(root: Path, name: str) -> Path | None:
    aliases = {"val": ("val", "validation"), "train": ("train",), "test": ("test",)}[name]
    return next((root / alias for alias in aliases if (root / alias).is_dir()), None)


def _classes(folder: Path) -> tuple[str, ...]:
    names = [entry.name for entry in subfolders(folder)]
    names = [name for name in names if folder.name == "train" or name not in {"val", "validation", "test"}]
    if len(names) < 2:
        found = f"only {names[0]!r}" if names else "none"
        raise UserError(f"{folder} needs a folder of images for each of at least two classes; found {found}")
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise UserError(f"the name of a class is no UTF-8: {str(folder / name)!r}; rename the folder")
    return tuple(names)


def _files(folder: Path, class_names: tuple[str, ...], notices: list[str]) -> tuple[list[Path], np.ndarray]:
    """The pictures below `folder` and their labels."""
    here = {entry.name for entry in subfolders(folder)}
    unknown = sorted(here - set(class_names) - {"val", "validation", "test"})
    missing = sorted(set(class_names) - here)
    if unknown or missing:
        raise UserError(f"the classes of {folder} differ from those of training: missing {missing}, unknown {unknown}")
    paths: list[Path] = []
    labels: list[int] = []
    others = 0
    for label, name in enumerate(class_names):
        found = find_images(folder / name)
        if not found.images:
            raise UserError(f"there is no image in {folder / name} (known are {', '.join(sorted(SUFFIXES))})")
        others += len(found.others)
        paths += found.images
        labels += [label] * len(found.images)
    if others:
        notices.append(f"{others} entries of {folder} are no pictures and were left out")
    return paths, np.array(labels, np.int32)


def _fill_parts(files: Files, seed: int, notices: list[str]) -> None:
    """Takes what is missing of val and test from train."""
    shares = {"val": VALIDATION_SHARE, "test": TEST_SHARE}
    missing = [name for name in shares if name not in files]
    if not missing:
        return
    paths, labels = files["train"]
    fractions = [1 - sum(shares[name] for name in missing), *(shares[name] for name in missing)]
    parts = stratified(labels, fractions, seed)
    for name, rows in zip(["train", *missing], parts, strict=True):
        if not len(rows):
            raise UserError(
                f"{paths[0].parent.parent} has too few images to take a {name} part from: add some, or a folder {name}/"
            )
        files[name] = ([paths[row] for row in rows], labels[rows])
    counts = ", ".join(f"{len(files[name][1]):,} {name}" for name in ("train", "val", "test"))
    notices.append(f"no folder {' or '.join(missing)}: taken from the training images at random, by class: {counts}")
