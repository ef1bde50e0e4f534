"""The sources of images with masks: folders `images` and `masks`, and Pascal VOC."""

import collections
import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from sft_jax.data.dataset import DECODING_THREADS, Dataset, Split, with_targets
from sft_jax.data.images import mask
from sft_jax.data.images.files import find_images, left_out, subfolders
from sft_jax.data.images.reading import MEMORY_FRACTION
from sft_jax.data.images.square import Square
from sft_jax.data.sources.listing import LabelledFile, Listing, counted, some
from sft_jax.data.sources.part_names import part_of
from sft_jax.errors import UserError
from sft_jax.runtime.estimate import size_text

IMAGES, MASKS, CLASSES = "images", "masks", "classes.txt"
# Other names of the folder of masks; and what may follow the name of a picture in that of its mask.
ALIASES, SUFFIX = ("mask", "labels", "annotations"), "_mask"
# Digits of a mask's SHA-256 in the record of a run.
DIGITS = 16
# Pascal VOC's, in the order of the values of its masks; 255 is the border between them.
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class Pair(NamedTuple):
    """A picture and its mask.

    Attributes:
      image, mask: the files.
      key: see `LabelledFile`.
      part: the split, None if the source does not say.
    """

    image: Path
    mask: Path
    key: str
    part: str | None


def list_masks(root: Path, ignored: int | None, notices: list[str]) -> Listing:
    """Lists ROOT/images/* with ROOT/masks/*, ROOT/train/images/* with ROOT/train/masks/*, or ROOT/images/train/* with
    ROOT/masks/train/*, and the other splits likewise.

    The mask of images/A/B.jpg is masks/A/B.png or masks/A/B_mask.png; for the folder see also `ALIASES`. The names of
    classes, in the order of the masks' values, are the lines of ROOT/classes.txt.

    Args:
      root: the folder.
      ignored: the value of pixels of no class, None if there is none.
      notices: receives a line about anything that is ignored or guessed.

    Raises:
      UserError: the folders, masks or classes are missing or do not fit each other.
    """
    if not root.is_dir():
        raise UserError(f"data.source=masks:{root}: no such folder")
    try:
        inside = subfolders(root)
        parts = {folder: part_of(folder.name) for folder in inside if (folder / IMAGES).is_dir()}
        unknown = [folder for folder, part in parts.items() if part is None]
        if unknown:
            raise UserError(f"{unknown[0]} contains {IMAGES} but is not named like a split; call it train, val or test")
        folders: dict[Path, str | None] = {root: None} if (root / IMAGES).is_dir() else {**parts}
        if not folders:
            raise UserError(
                f"data.source=masks:{root} has neither folders {IMAGES} and {MASKS} nor train/{IMAGES} and "
                f"train/{MASKS}, only {some(folder.name for folder in inside) or 'no folders'}"
            )
        pairs = [pair for folder, part in folders.items() for pair in _pairs(folder, part, notices)]
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
    return _listing(root, pairs, _class_names(root), ignored, notices)


def list_voc(root: Path, ignored: int | None, notices: list[str]) -> Listing:
    """Lists the images of Pascal VOC's ImageSets/Segmentation, in ROOT or ROOT/VOC2012; see `list_masks`."""
    if not root.is_dir():
        raise UserError(f"data.source=voc:{root}: no such folder")
    years = [folder for folder in (root, *reversed(subfolders(root))) if (folder / "SegmentationClass").is_dir()]
    if not years:
        raise UserError(f"data.source=voc:{root} has no SegmentationClass, nor has a folder in it; name VOC2012")
    folder, pairs, without = years[0], [], []
    for part in ("train", "val", "test"):
        names = folder / "ImageSets" / "Segmentation" / f"{part}.txt"
        for name in _lines(names) if names.is_file() else ():
            image = folder / "JPEGImages" / f"{name}.jpg"
            own = folder / "SegmentationClass" / f"{name}.png"
            if part == "test" and not own.is_file():
                without.append(name)  # those of VOC are not published
            else:
                pairs.append(Pair(image, own, image.name, part))
    if without:
        notices.append(f"{counted(len(without), 'test image')} ignored, which have no mask: {some(without)}")
    if not pairs:
        raise UserError(f"data.source=voc:{root}: {folder}/ImageSets/Segmentation has no train.txt with images")
    absent = [path for pair in pairs for path in (pair.image, pair.mask) if not path.is_file()]
    if absent:
        raise UserError(f"{counted(len(absent), 'file')} of {folder}/ImageSets/Segmentation missing: {_some(absent)}")
    return _listing(folder, pairs, VOC_CLASSES, ignored, notices)


def with_masks(dataset: Dataset, root: Path, ignored: int | None) -> Dataset:
    """Returns a dataset with masks in place of the names of their files, below `root`: {"mask": uint8 [n, side, side]}.

    They are squares like their images, and pixels of no class are `mask.VOID`.

    Raises:
      UserError: a mask cannot be read, or they do not fit into memory.
    """
    square, splits = dataset.square, (dataset.train, dataset.validation, dataset.test)
    assert square is not None
    check_memory(sum(map(len, splits)), square.side)
    read = [with_targets(split, {"mask": read_masks(split, root, square, ignored)}) for split in splits]
    return dataclasses.replace(dataset, train=read[0], validation=read[1], test=read[2])


def check_memory(count: int, side: int) -> None:
    """Raises UserError if there is too little memory for `count` masks of this side length."""
    needed, free = count * side**2, psutil.virtual_memory().available
    if needed > MEMORY_FRACTION * free:
        raise UserError(
            f"the masks need {size_text(needed)} of memory at {side} px, of which {size_text(free)} are free; "
            f"use a smaller data.size, or fewer images"
        )


def read_masks(split: Split, root: Path, square: Square, ignored: int | None) -> np.ndarray:
    """Reads the masks whose files, below `root`, `split` names: uint8 [n, side, side], see `with_masks`."""
    masks = np.empty((len(split), square.side, square.side), np.uint8)
    paths = [root / name for name in split.targets["mask"]]
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        for row, own in enumerate(pool.map(lambda path: mask.read(path, square, ignored), paths)):
            masks[row] = own
    return masks


def _pairs(folder: Path, part: str | None, notices: list[str]) -> list[Pair]:
    """Returns the pictures of FOLDER/images with their masks. Raises OSError, UserError."""
    place = next((folder / name for name in (MASKS, *ALIASES) if (folder / name).is_dir()), None)
    if place is None:
        raise UserError(f"{folder} has a folder {IMAGES} but none called {MASKS}")
    images, masks = find_images(folder / IMAGES), find_images(place)
    for found in (images, masks):
        if found.others:
            notices.append(left_out(found.others))
    by_stem: dict[Path, list[Path]] = collections.defaultdict(list)
    for path in masks.images:
        by_stem[path.relative_to(place).with_suffix("")].append(path)
    pairs = []
    for image in images.images:
        name = image.relative_to(folder / IMAGES)
        stem = name.with_suffix("")
        own = by_stem.get(stem) or by_stem.get(stem.with_name(stem.name + SUFFIX), [])
        if len(own) > 1:
            raise UserError(f"{image} has several masks: {_some(own)}; keep one of them")
        if own:
            named = part if part or len(name.parts) == 1 else part_of(name.parts[0])
            pairs.append(Pair(image, own[0], name.as_posix(), named))
    lacking = sorted({*images.images} - {pair.image for pair in pairs})
    if lacking:
        wanted = place / lacking[0].relative_to(folder / IMAGES).with_suffix(".png")
        raise UserError(f"{counted(len(lacking))} without a mask: {_some(lacking)}; the first needs {wanted}")
    twice = [stem for stem, count in collections.Counter(pair.mask for pair in pairs).items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]} is the mask of several images; give each its own name")
    unused = sorted({*masks.images} - {pair.mask for pair in pairs})
    if unused:
        notices.append(f"{counted(len(unused), 'mask')} ignored, without an image: {_some(unused)}")
    if not pairs:
        raise UserError(f"{folder / IMAGES} contains no images")
    loose = [pair.image for pair in pairs if pair.part is None]
    if 0 < len(loose) < len(pairs):
        raise UserError(f"{_some(loose[:1])} is in no split, but others are in folders of splits; move it into one")
    return pairs


def _listing(
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
    return Listing(root, root, names, files, "mask")


def _look(pair: Pair) -> tuple[str, tuple[int, ...]]:
    """Returns the digest and the values of a mask. Raises UserError if it does not fit its picture."""
    content = mask.content_of(pair.mask)
    own, values = mask.survey(pair.mask, content)
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
    return hashlib.sha256(content).hexdigest()[:DIGITS], values


def _unknown(values: Iterable[int], names: Sequence[str], ignored: int | None) -> list[int]:
    return [value for value in values if value >= len(names) and value != ignored]


def _class_names(root: Path) -> tuple[str, ...] | None:
    """Returns the lines of ROOT/classes.txt; None without it. Raises UserError if one is empty or there twice."""
    path = root / CLASSES
    if not path.is_file():
        return None
    names = tuple(_lines(path))
    if "" in names:
        raise UserError(f"{path}: line {names.index('') + 1} is empty; each line is the name of a class")
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{path} has {twice[0]!r} twice")
    if len(names) > mask.VOID:
        raise UserError(f"{path} has {len(names):,} classes; masks of 8 bits have at most {mask.VOID}")
    return names


def _lines(path: Path) -> list[str]:
    """Returns the lines of a text file, stripped, without empty ones at the end. Raises UserError."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _some(paths: Iterable[Path]) -> str:
    return some(map(str, paths))
