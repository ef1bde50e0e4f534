"""A run's record of its images, held against what is there now: what moved, came or went since it began."""

import filecmp
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from sft_jax.data.sources.listing import LabelledFile, Listing, Parts, Record, counted, some
from sft_jax.data.sources.part_names import PARTS, part_of
from sft_jax.errors import UserError

ANEW = "or train anew from its weights, with --config.init=RUN and a fresh --workdir"


def record_of(listing: Listing, parts: Parts) -> Record:
    """What a run records of files that were found just now. Raises OSError."""
    sizes: dict[str, list[dict[str, int]]] = {}
    for part, files in parts.items():
        by_class: dict[str, dict[str, int]] = {name: {} for name in listing.class_names}
        for file in files:
            by_class[file.class_name][file.name] = (listing.root / file.name).stat().st_size
        sizes[part] = list(by_class.values())
    place, root = (str(path.absolute()) for path in (listing.place, listing.root))
    return Record(listing.class_names, place, root, sizes)


def as_recorded(listing: Listing, record: Record, notices: list[str], *, resuming: bool) -> Parts:
    """The files of the run's parts, in its order. What was added since goes to no part; what is gone is said.

    Args:
      listing: what there is.
      record: with parts.
      notices: gets a line about each kind of change.
      resuming: training goes on, and wants just the images that it had.

    Raises:
      UserError: a class was renamed, images have other labels, or those that are needed are gone.
    """
    found = {_composed(file.name): file for file in listing.files}
    parts: Parts = {part: [] for part in PARTS}
    gone: dict[str, list[str]] = {part: [] for part in PARTS}
    relabelled, changed = [], []
    for part, name, class_name, size in _entries(record):
        file = found.pop(_composed(name), None)
        if file is None:
            gone[part].append(name)
        elif _composed(file.class_name) != _composed(class_name):
            relabelled.append(f"{name} was {class_name!r} and is {file.class_name!r}")
        else:
            parts[part].append(file._replace(class_name=class_name))
            if (listing.root / file.name).stat().st_size != size:
                changed.append(name)
    added = list(found.values())
    if relabelled:
        raise UserError(
            f"{listing.place}: {counted(len(relabelled))} of the run have other labels since it began: "
            f"{some(relabelled)}; change them back, {ANEW}"
        )
    _check_renamed(listing, record, parts, added)
    if not any(parts.values()):
        raise UserError(
            f"{listing.place} has none of the {sum(map(len, gone.values())):,} images of the run; name the folder that "
            f"it was trained on, or score other images with: python -m sft_jax.evaluate --workdir RUN --data SOURCE"
        )
    if resuming and gone["train"]:
        raise UserError(
            f"{listing.place}: {counted(len(gone['train']), 'training image')} of the run are gone: "
            f"{some(gone['train'])}; put them back to resume, {ANEW}"
        )
    for part, names in gone.items():
        if names and not parts[part]:
            raise UserError(
                f"{listing.place}: all {counted(len(names), f'{part} image')} of the run are gone; put them back"
            )
        if names:
            notices.append(f"gone since the run began: {counted(len(names), f'{part} image')}: {some(names)}")
    if changed:
        notices.append(f"changed since the run began: {counted(len(changed))}: {some(changed)}")
    if added:
        names = [file.name for file in added]
        notices.append(f"added since the run began and left out: {counted(len(names))}: {some(names)}")
    return parts


def _check_renamed(listing: Listing, record: Record, parts: Parts, added: list[LabelledFile]) -> None:
    """Raises UserError where the images of a class lie under another name now."""
    here = {file.class_name for files in parts.values() for file in files}
    had = {name: set[str]() for name in record.class_names if name not in here}
    for _, name, class_name, _ in _entries(record):
        if class_name in had:
            had[class_name].add(PurePosixPath(name).name)
    new: dict[str, set[str]] = {}
    for file in added:
        if file.class_name not in record.class_names:
            new.setdefault(file.class_name, set()).add(PurePosixPath(file.name).name)
    for old, names in had.items():
        likely = max(new, key=lambda name: len(new[name] & names), default=None)
        if likely is not None and 2 * len(new[likely] & names) > len(names):
            raise UserError(
                f"{listing.place}: the class {old!r} of the run is called {likely!r} now, which would move labels; "
                f"rename it back to {old!r}, {ANEW}"
            )


def trained_among(earlier: Record, now: Record) -> dict[str, list[str]]:
    """Of the validation and the test part of `now`, the files that `earlier` trained on: part -> names.

    They have the same name, folders of parts aside, the same size and, where the earlier one is still there, the same
    content.
    """
    trained = {(_bare(name), size): name for name, size in earlier.sizes("train").items()}
    found: dict[str, list[str]] = {}
    for part in PARTS[1:]:
        for name, size in now.sizes(part).items():
            old = trained.get((_bare(name), size))
            if old is not None and _same_content(earlier, old, now, name):
                found.setdefault(part, []).append(name)
    return found


def _same_content(earlier: Record, old: str, now: Record, new: str) -> bool:
    before, after = Path(earlier.root or "", old), Path(now.root or "", new)
    return before == after or not before.is_file() or filecmp.cmp(before, after, shallow=False)


def _entries(record: Record) -> Iterator[tuple[str, str, str, int]]:
    """Part, name, class name and size of every file."""
    for part, by_class in (record.parts or {}).items():
        for class_name, files in zip(record.class_names, by_class, strict=True):
            for name, size in files.items():
                yield part, name, class_name, size


def _composed(name: str) -> str:
    # macOS decomposes accents in file names.
    return unicodedata.normalize("NFC", name)


def _bare(name: str) -> str:
    """`name` without the folders of parts that it begins with."""
    pieces = _composed(name).split("/")
    while len(pieces) > 1 and part_of(pieces[0]):
        pieces.pop(0)
    return "/".join(pieces)
