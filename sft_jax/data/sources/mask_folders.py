"""The source of images with masks in folders of their own, `images` and `masks`."""

import collections
from pathlib import Path

from sft_jax.data.images import mask
from sft_jax.data.images.files import find_images, left_out, subfolders
from sft_jax.data.sources.listing import Listing, counted, some
from sft_jax.data.sources.masks import CLASSES, Pair, check_folder, lines_of, listing_of, some_paths
from sft_jax.data.sources.part_names import part_of
from sft_jax.errors import UserError

IMAGES, MASKS = "images", "masks"
# Other names of the folder of masks; and what may follow the name of a picture in that of its mask.
ALIASES, SUFFIX = ("mask", "labels", "annotations"), "_mask"


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
    check_folder(f"masks:{root}", root)
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
    return listing_of(root, pairs, _class_names(root), ignored, notices)


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
            raise UserError(f"{image} has several masks: {some_paths(own)}; keep one of them")
        if own:
            named = part if part or len(name.parts) == 1 else part_of(name.parts[0])
            pairs.append(Pair(image, own[0], name.as_posix(), named))
    lacking = sorted({*images.images} - {pair.image for pair in pairs})
    if lacking:
        wanted = place / lacking[0].relative_to(folder / IMAGES).with_suffix(".png")
        raise UserError(f"{counted(len(lacking))} without a mask: {some_paths(lacking)}; the first needs {wanted}")
    twice = [stem for stem, count in collections.Counter(pair.mask for pair in pairs).items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]} is the mask of several images; give each its own name")
    unused = sorted({*masks.images} - {pair.mask for pair in pairs})
    if unused:
        notices.append(f"{counted(len(unused), 'mask')} ignored, without an image: {some_paths(unused)}")
    if not pairs:
        raise UserError(f"{folder / IMAGES} contains no images")
    loose = [pair.image for pair in pairs if pair.part is None]
    if 0 < len(loose) < len(pairs):
        raise UserError(f"{loose[0]} is in no split, but others are in folders of splits; move it into one")
    return pairs


def _class_names(root: Path) -> tuple[str, ...] | None:
    """Returns the lines of ROOT/classes.txt; None without it. Raises UserError if one is empty or there twice."""
    path = root / CLASSES
    if not path.is_file():
        return None
    names = tuple(lines_of(path))
    if "" in names:
        raise UserError(f"{path}: line {names.index('') + 1} is empty; each line is the name of a class")
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{path} has {twice[0]!r} twice")
    if len(names) > mask.VOID:
        raise UserError(f"{path} has {len(names):,} classes; masks of 8 bits have at most {mask.VOID}")
    return names
