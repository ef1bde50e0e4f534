"""Finds the image files below a folder, by the same rule for training, prediction and recipes."""

import collections
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sft_jax.data.images.formats import HEIF_HINT, HEIF_SUFFIXES, is_image, suffixes

# Files with these suffixes count as images without being opened, because folders may contain millions.
SUFFIXES = suffixes()
# Files and folders that operating systems and programs leave among images.
JUNK = frozenset({"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini"})


class Found(NamedTuple):
    """The files of a folder, sorted: images and all others."""

    images: list[Path]
    others: list[Path]


def is_ignored(name: str) -> bool:
    """Returns whether a file or folder of this name is always ignored: hidden or in `JUNK`."""
    return name.startswith(".") or name in JUNK


def subfolders(folder: Path) -> list[Path]:
    """Returns the folders directly in `folder`, sorted by name, without ignored ones. Raises OSError."""
    return sorted(entry for entry in folder.iterdir() if not is_ignored(entry.name) and entry.is_dir())


def find_images(folder: Path) -> Found:
    """Lists the files in and below `folder`, following links, as torchvision's `ImageFolder` does.

    Raises:
      OSError: a folder is not readable.
    """
    # A link to a parent of `folder` would pull in the images of other classes.
    above = frozenset(_identity(parent) for parent in folder.resolve().parents)
    images: list[Path] = []
    others: list[Path] = []
    for path in sorted(_entries(folder, above)):
        (images if is_image_file(path) else others).append(path)
    return Found(images, others)


def is_image_file(path: Path) -> bool:
    """Returns whether a file has the suffix or the signature of a supported format."""
    return path.is_file() and (path.suffix.lower() in SUFFIXES or is_image(path))


def left_out(others: Sequence[Path]) -> str:
    """Describes the files of `Found.others`, counted by kind, with an example of each."""
    kinds: dict[str, list[Path]] = collections.defaultdict(list)
    for path in others:
        kinds[_kind(path)].append(path)
    described = [
        f"{len(paths):,} {kind} (e.g. {paths[0]}{f'; {HEIF_HINT}' if kind in HEIF_SUFFIXES else ''})"
        for kind, paths in sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    files = f"{len(others):,} file{'' if len(others) == 1 else 's'}"
    return f"{files} skipped, not readable as images: {', '.join(described)}"


def _kind(path: Path) -> str:
    if not path.is_file():
        return "special files or broken links"
    return path.suffix.lower() or "without a suffix"


def _entries(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """Yields all non-folders in and below `folder`, without entering folders in `above` or link cycles."""
    here = above | {_identity(folder)}
    with os.scandir(folder) as entries:
        paths = [folder / entry.name for entry in entries if not is_ignored(entry.name)]
    for path in paths:
        if path.is_dir() and _identity(path) not in here:
            yield from _entries(path, here)
        else:
            yield path


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
