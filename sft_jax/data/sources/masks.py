"""Images with masks: what their sources have in common, and the masks as squares."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sft_jax.data.dataset import DECODING_THREADS, Dataset, Split, with_targets
from sft_jax.data.images import mask
from sft_jax.data.images.segments import Segments
from sft_jax.data.images.square import Square
from sft_jax.data.sources.listing import LabelledFile, Listing, counted, some
from sft_jax.errors import UserError
from sft_jax.runtime.memory import check_free

CLASSES = "classes.txt"
# Digits of a mask's SHA-256 in the record of a run.
DIGITS = 16


class Pair(NamedTuple):
    """A picture and its mask.

    Attributes:
      image, mask: the files.
      key: see `LabelledFile`.
      part: the split, None if the source does not say.
      segments: of a panoptic mask; None if its pixels are the indices of classes.
    """

    image: Path
    mask: Path
    key: str
    part: str | None
    segments: Segments | None = None


def check_folder(source: str, root: Path) -> None:
    """Raises UserError if there is no folder `root`, that of a `data.source`."""
    if not root.is_dir():
        raise UserError(f"data.source={source}: no such folder")


def check_present(pairs: Iterable[Pair], listed_in: Path) -> None:
    """Raises UserError if an image or a mask that `listed_in` names does not exist."""
    absent = [path for pair in pairs for path in (pair.image, pair.mask) if not path.is_file()]
    if absent:
        raise UserError(f"{counted(len(absent), 'file')} of {listed_in} missing: {some_paths(absent)}")


def with_masks(dataset: Dataset, listing: Listing, ignored: int | None) -> Dataset:
    """Returns a dataset of a listing with masks in place of the names of their files: {"mask": uint8 [n, side, side]}.

    They are squares like their images, and pixels of no class are `mask.VOID`.

    Raises:
      UserError: a mask cannot be read, or they do not fit into memory.
    """
    square, splits = dataset.square, (dataset.train, dataset.validation, dataset.test)
    assert square is not None
    check_memory(sum(map(len, splits)), square.side)
    read = [with_targets(split, {"mask": read_masks(split, listing, square, ignored)}) for split in splits]
    return dataclasses.replace(dataset, train=read[0], validation=read[1], test=read[2])


def check_memory(count: int, side: int) -> None:
    """Raises UserError if there is too little memory for `count` masks of this side length."""
    check_free(count * side**2, f"the masks at {side} px", "use a smaller data.size, or fewer images")


def read_masks(split: Split, listing: Listing, square: Square, ignored: int | None) -> np.ndarray:
    """Reads the masks of `listing` whose files `split` names: uint8 [n, side, side], see `with_masks`."""

    def read(name: str) -> np.ndarray:
        return mask.read(listing.root / name, square, ignored, listing.segments.get(name))

    masks = np.empty((len(split), square.side, square.side), np.uint8)
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        for row, own in enumerate(pool.map(read, split.targets["mask"])):
            masks[row] = own
    return masks


def listing_of(
    root: Path, pairs: Sequence[Pair], names: tuple[str, ...] | None, ignored: int | None, notices: list[str]
) -> Listing:
    """Makes the listing of checked pairs. Raises UserError."""
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        looked = list(pool.map(_look, pairs))
    values = {value for _, own in looked for value in own} - {ignored}
    if names is None:
        if max(values, default=0) == mask.VOID:
            raise UserError(
                f"{root}: masks have the value {mask.VOID}, and no {CLASSES} says of which class; classes are numbered "
                f"from 0 without gaps, and pixels of none have data.ignore_index"
            )
        names = tuple(map(str, range(max(values, default=0) + 1)))
        notices.append(f"{root} has no {CLASSES}: the classes are the values of the masks, {names[0]} to {names[-1]}")
    if len(names) < 2:
        binary = {value for _, own in looked for value in own} == {0, mask.VOID}
        hint = f"; if {mask.VOID} is one, write 1 in its place" if binary else ""
        raise UserError(f"{root} has {counted(len(names), 'class')}, but segmentation needs two or more{hint}")
    wrong = [(pair, own) for pair, (_, own) in zip(pairs, looked, strict=True) if _unknown(own, names, ignored)]
    if wrong:
        pair, own = wrong[0]
        value = _unknown(own, names, ignored)[0]
        raise UserError(
            f"{counted(len(wrong), 'mask')} with a value that no class has: {pair.mask} has {value}, but the "
            f"{len(names)} classes are 0 to {len(names) - 1}; if it marks pixels to ignore, use "
            f"--config.data.ignore_index={value}"
        )
    files = [
        LabelledFile(_name(pair.image, root), pair.key, (_name(pair.mask, root), digest), pair.part)
        for pair, (digest, _) in zip(pairs, looked, strict=True)
    ]
    segments = {_name(pair.mask, root): pair.segments for pair in pairs if pair.segments is not None}
    return Listing(root, root, names, files, "mask", segments=segments)


def _look(pair: Pair) -> tuple[str, tuple[int, ...]]:
    """Returns the digest and the values of a mask. Raises UserError if it does not fit its picture."""
    content = mask.content_of(pair.mask)
    own, values = mask.survey(pair.mask, content, pair.segments)
    picture = mask.header(pair.image)
    if picture is not None:
        if not (picture.upright and own.upright):
            rotated = pair.mask if picture.upright else pair.image
            raise UserError(f"{rotated} is stored rotated (EXIF); save it and its mask as they are to be shown")
        if picture.size != own.size:
            width, height = own.size
            raise UserError(
                f"the mask {pair.mask} has {width} x {height} pixels, but its picture {pair.image} has "
                f"{picture.size[0]} x {picture.size[1]}"
            )
    beside = b"" if pair.segments is None else pair.segments.tobytes()
    return hashlib.sha256(content + beside).hexdigest()[:DIGITS], values


def _unknown(values: Iterable[int], names: Sequence[str], ignored: int | None) -> list[int]:
    return [value for value in values if value >= len(names) and value != ignored]


def lines_of(path: Path) -> list[str]:
    """Returns the lines of a text file, stripped, without empty ones at the end. Raises UserError."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def some_paths(paths: Iterable[Path]) -> str:
    """Joins the first few paths and counts the rest, for a message."""
    return some(map(str, paths))
