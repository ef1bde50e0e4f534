"""Which files below a folder are images: one rule for training, prediction and recipes."""

import collections
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sft_jax.data.images.formats import HEIF_HINT, HEIF_SUFFIXES, is_image, suffixes

# Files called so are taken for images without a look into them: folders may hold millions.
SUFFIXES = suffixes()
# What operating systems and programs leave beside images.
JUNK = frozenset({"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini"})


class Found(NamedTuple):
    """The files of a folder, sorted: images, and what is none."""

    images: list[Path]
    others: list[Path]


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is never looked at: hidden ones, and those that programs leave behind."""
    return name.startswith(".") or name in JUNK


def subfolders(folder: Path) -> list[Path]:
    """The folders directly in `folder`, sorted by name, less those that are ignored. Raises OSError."""
    return sorted(entry for entry in folder.iterdir() if not is_ignored(entry.name) and entry.is_dir())


def find_images(folder: Path) -> Found:
    """The files in and below `folder`, as torchvision's `ImageFolder` looks for them; links are followed.

    Raises:
      OSError: a folder may not be read.
    """
    # A link to a folder that holds `folder` would bring in the images of other classes.
    above = frozenset(_identity(parent) for parent in folder.resolve().parents)
    found = Found([], [])
    for path in sorted(_entries(folder, above)):
        (found.images if is_image_file(path) else found.others).append(path)
    return found


def is_image_file(path: Path) -> bool:
    """Whether a file has the suffix of a format that can be read here, or begins as such a format does."""
    return path.is_file() and (path.suffix.lower() in SUFFIXES or is_image(path))


def left_out(others: Sequence[Path]) -> str:
    """What those of `Found.others` are, counted by kind, with an example of each."""
    kinds: dict[str, list[Path]] = collections.defaultdict(list)
    for path in others:
        kinds[_kind(path)].append(path)
    described = [
        f"{len(paths):,} {kind} (e.g. {paths[0]}{f'; {HEIF_HINT}' if kind in HEIF_SUFFIXES else ''})"
        for kind, paths in sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    return f"{len(others):,} files are no images that can be read, and were left out: {', '.join(described)}"


def _kind(path: Path) -> str:
    if not path.is_file():
        return "special files or links that lead nowhere"
    return path.suffix.lower() or "without a suffix"


def _entries(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """Everything in and below `folder` but folders; one that is among `above` or leads round is not entered."""
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
