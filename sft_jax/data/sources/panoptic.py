"""The source of images with COCO's panoptic masks: a JSON file of segments for each split, and a PNG for each image."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sft_jax.data.images import mask
from sft_jax.data.images.segments import Segments
from sft_jax.data.sources.listing import Listing, counted
from sft_jax.data.sources.masks import Pair, check_folder, check_present, listing_of, some_paths
from sft_jax.data.sources.part_names import part_of
from sft_jax.errors import UserError

START = "panoptic_"


def list_panoptic(root: Path, ignored: int | None, notices: list[str]) -> Listing:
    """Lists the images of COCO's panoptic segmentation: ROOT/annotations/panoptic_train2017.json and so on.

    The masks are in a folder beside such a file that has its name, the images in ROOT/train2017 or
    ROOT/images/train2017; the JSON files may also be in ROOT itself. Each segment counts as its category, whichever
    object it is. Classes are the categories in the order of the first file; pixels of no segment are ignored.

    Args:
      root: the folder.
      ignored: must be `mask.VOID`, the default: these masks have no value of pixels to ignore.
      notices: receives a line about anything that is ignored.

    Raises:
      UserError: files are missing, or do not fit each other or the format.
    """
    check_folder(f"panoptic:{root}", root)
    if ignored != mask.VOID:
        raise UserError(
            f"data.ignore_index={ignored}: panoptic masks have no such value, the pixels of no segment are ignored; "
            f"use --config.data.ignore_index={mask.VOID}"
        )
    tables = sorted(path for place in (root / "annotations", root) for path in place.glob(f"{START}*.json"))
    if not tables:
        raise UserError(f"data.source=panoptic:{root} has no annotations/{START}train2017.json or the like")
    read = {table: _read(table, root, notices) for table in tables}
    names, first = read[tables[0]].names, tables[0]
    parts: dict[str, Path] = {}
    for table, own in read.items():
        if own.names != names:
            raise UserError(f"{table} has other categories than {first}; keep the files of one set in the folder")
        if own.part in parts:
            raise UserError(f"{table} and {parts[own.part]} are both of the split {own.part}; keep one of them")
        parts[own.part] = table
    return listing_of(root, [pair for own in read.values() for pair in own.pairs], names, ignored, notices)


class _Table(NamedTuple):
    """The content of a JSON file: its split, the names of the classes, and the images with their masks."""

    part: str
    names: tuple[str, ...]
    pairs: list[Pair]


def _read(table: Path, root: Path, notices: list[str]) -> _Table:
    """Reads a JSON file and finds its images. Raises UserError."""
    part = part_of(table.stem.removeprefix(START))
    if part is None:
        raise UserError(f"{table} is not named like a split; call it {START}train.json, {START}val.json or so")
    masks = table.with_suffix("")
    if not masks.is_dir():
        hint = f"; unpack {masks}.zip" if masks.with_suffix(".zip").is_file() else ""
        raise UserError(f"{table} has no folder {masks} of masks beside it{hint}")
    places = [folder / table.stem.removeprefix(START) for folder in (root, root / "images")]
    images = next((place for place in places if place.is_dir()), None)
    if images is None:
        raise UserError(f"the images of {table} are missing: neither {places[0]} nor {places[1]} is a folder")
    try:
        content = json.loads(table.read_bytes())
        categories = [(category["id"], category["name"]) for category in content["categories"]]
        indices, names = {key: index for index, (key, _) in enumerate(categories)}, [name for _, name in categories]
        files = {image["id"]: images / image["file_name"] for image in content["images"]}
        found = {own["image_id"]: (masks / own["file_name"], own["segments_info"]) for own in content["annotations"]}
        pairs = [
            Pair(files.pop(key), path, path.stem, part, _segments(segments, indices))
            for key, (path, segments) in found.items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{table} is not in COCO's panoptic format ({type(error).__name__}: {error})") from None
    if len(set(names)) < len(names) or len(indices) < len(names) or len(names) > mask.VOID:
        raise UserError(f"{table} has a category twice, or more than {mask.VOID}")
    check_present(pairs, table)
    if files:
        notices.append(f"{counted(len(files))} of {table} ignored, without a mask: {some_paths(files.values())}")
    return _Table(part, tuple(names), pairs)


def _segments(listed: Sequence[Mapping[str, int]], indices: Mapping[int, int]) -> Segments:
    """Returns the segments of a mask; `indices` are the classes of the categories. Raises KeyError, ValueError, ..."""
    classes = {0: mask.VOID} | {segment["id"]: indices[segment["category_id"]] for segment in listed}
    numbers = sorted(classes)
    return Segments(np.array(numbers, np.uint32), np.array([classes[number] for number in numbers], np.uint8))
