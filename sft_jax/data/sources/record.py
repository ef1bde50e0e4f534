"""Compares a run's record of its images with the images that exist now: moved, added, changed or missing files."""

import filecmp
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from sft_jax.data.sources.listing import Label, LabelledFile, Listing, Parts, Record, counted, some
from sft_jax.data.sources.part_names import PARTS, part_of
from sft_jax.errors import UserError

ANEW = "or start a new run from its weights, with --config.init=RUN and a new --workdir"


def record_of(listing: Listing, parts: Parts) -> Record:
    """Builds the record of a new run. Raises OSError."""
    sizes: dict[str, list[dict[str, int]]] = {}
    labels: tuple[Label, ...] | None = None
    if listing.labelling != "class":
        labels = tuple(sorted({file.label for files in parts.values() for file in files}))
    for part, files in parts.items():
        by_label: dict[Label, dict[str, int]] = {label: {} for label in labels or listing.class_names}
        for file in files:
            by_label[file.label][file.name] = (listing.root / file.name).stat().st_size
        sizes[part] = list(by_label.values())
    place, root = (str(path.absolute()) for path in (listing.place, listing.root))
    return Record(listing.class_names, place, root, sizes, labels)


def as_recorded(listing: Listing, record: Record, notices: list[str], *, resuming: bool) -> Parts:
    """Returns the files of the run's splits, in recorded order. Files added since are ignored, missing ones reported.

    Args:
      listing: the files that exist now.
      record: a record that has splits.
      notices: receives a line about each kind of change.
      resuming: training continues, and needs exactly the recorded training images.

    Raises:
      UserError: a class was renamed, labels changed, or required images are missing.
    """
    unrecorded = {_composed(file.name): file for file in listing.files}
    parts: Parts = {part: [] for part in PARTS}
    gone: dict[str, list[str]] = {part: [] for part in PARTS}
    relabelled, changed = [], []
    for part, name, label, size in _entries(record):
        file = unrecorded.pop(_composed(name), None)
        if file is None:
            gone[part].append(name)
        elif _same_form(file.label) != _same_form(label):
            relabelled.append(f"{name} was {label!r}, is now {file.label!r}")
        else:
            parts[part].append(file._replace(label=label))
            if (listing.root / file.name).stat().st_size != size:
                changed.append(name)
    added = list(unrecorded.values())
    if relabelled:
        raise UserError(
            f"{listing.place}: labels of {counted(len(relabelled))} changed since the run began: "
            f"{some(relabelled)}; change them back, {ANEW}"
        )
    if record.labels is None:
        _check_renamed(listing, record, parts, added)
    if not any(parts.values()):
        raise UserError(
            f"{listing.place} has none of the run's {sum(map(len, gone.values())):,} images; name the folder that it "
            f"was trained on, or evaluate other images with: python -m sft_jax.evaluate --workdir RUN --data SOURCE"
        )
    if resuming and gone["train"]:
        raise UserError(
            f"{listing.place}: {counted(len(gone['train']), 'training image')} of the run are missing: "
            f"{some(gone['train'])}; restore them to resume, {ANEW}"
        )
    for part, names in gone.items():
        if names and not parts[part]:
            raise UserError(
                f"{listing.place}: all {counted(len(names), f'{part} image')} of the run are missing; restore them"
            )
        if names:
            notices.append(f"missing since the run began: {counted(len(names), f'{part} image')}: {some(names)}")
    if changed:
        notices.append(f"changed since the run began: {counted(len(changed))}: {some(changed)}")
    if added:
        names = [file.name for file in added]
        notices.append(f"ignored, because added since the run began: {counted(len(names))}: {some(names)}")
    return parts


def _check_renamed(listing: Listing, record: Record, parts: Parts, added: list[LabelledFile]) -> None:
    """Raises UserError if most images of a class are now under another class name."""
    here = {file.label for files in parts.values() for file in files}
    had: dict[Label, set[str]] = {name: set() for name in record.class_names if name not in here}
    for _, name, label, _ in _entries(record):
        if label in had:
            had[label].add(PurePosixPath(name).name)
    new: dict[Label, set[str]] = {}
    for file in added:
        if file.label not in record.class_names:
            new.setdefault(file.label, set()).add(PurePosixPath(file.name).name)
    for old, names in had.items():
        likely = max(new, key=lambda name: len(new[name] & names), default=None)
        if likely is not None and 2 * len(new[likely] & names) > len(names):
            raise UserError(
                f"{listing.place}: class {old!r} of the run is now called {likely!r}, which would shift labels; "
                f"rename it back to {old!r}, {ANEW}"
            )


def trained_among(earlier: Record, now: Record) -> dict[str, list[str]]:
    """Maps "val" and "test" to the names of those of their files in `now` that `earlier` was trained on.

    A file matches if its name (without split folders), its size and, if the earlier file still exists, its content are
    the same.
    """
    trained = {(_bare(name), size): name for name, size in earlier.sizes("train").items()}
    matches: dict[str, list[str]] = {}
    for part in PARTS[1:]:
        for name, size in now.sizes(part).items():
            old = trained.get((_bare(name), size))
            if old is not None and _same_content(earlier, old, now, name):
                matches.setdefault(part, []).append(name)
    return matches


def _same_content(earlier: Record, old: str, now: Record, new: str) -> bool:
    before, after = Path(earlier.root or "", old), Path(now.root or "", new)
    return before == after or not before.is_file() or filecmp.cmp(before, after, shallow=False)


def _entries(record: Record) -> Iterator[tuple[str, str, Label, int]]:
    """Yields split, name, label and size of every file."""
    for part, by_label in (record.parts or {}).items():
        for label, files in zip(record.groups, by_label, strict=True):
            for name, size in files.items():
                yield part, name, label, size


def _same_form(label: Label) -> Label:
    """Returns a label with its names as `_composed` has them, to be compared."""
    if isinstance(label, tuple):
        return tuple(map(_composed, label))
    return _composed(label) if isinstance(label, str) else label


def _composed(name: str) -> str:
    # macOS decomposes accents in file names.
    return unicodedata.normalize("NFC", name)


def _bare(name: str) -> str:
    """Strips leading split folders from `name`."""
    pieces = _composed(name).split("/")
    while len(pieces) > 1 and part_of(pieces[0]):
        pieces.pop(0)
    return "/".join(pieces)
