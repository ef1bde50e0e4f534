"""Builds splits from image files: decoded once into memory, or on demand if they do not fit."""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from sft_jax.data.dataset import DECODING_THREADS, ArraySplit, Batch, Split, StreamedSplit
from sft_jax.data.images.formats import UNREADABLE, FileWarnings, reason
from sft_jax.data.images.reading import Reading, bad_images, streaming_notice
from sft_jax.data.images.square import Square
from sft_jax.data.images.stored import Stored, stored
from sft_jax.data.images.survey import Seen, decoding_notices, fit_notices, look, ranges
from sft_jax.errors import UserError

T = TypeVar("T")
# Maximum number of queued tasks: a million of them would take as much memory as the pixels.
SUBMITTED = 4096
# Split name -> its image files and their targets.
Files = Mapping[str, tuple[Sequence[Path], Batch]]


class Images(NamedTuple):
    """The result of reading image files.

    Attributes:
      splits: by name.
      square: the preprocessing that was applied.
      notices: messages to the user.
    """

    splits: dict[str, Split]
    square: Square
    notices: list[str]


def read_images(root: Path, files: Files, size: int, reading: Reading) -> Images:
    """Reads image files below `root` as squares for a network that sees `size` pixels, after checking all of them.

    The gray values of the split "train", which comes first, determine how 16 bits are scaled to 8.

    Raises:
      UserError: images are unreadable, unless they may be skipped and leave no class of a split empty.
    """
    paths = [path for part, _ in files.values() for path in part]
    side = reading.square_of(size).side
    streamed = reading.must_stream(len(paths), side)
    bad: dict[int, str] = {}
    with FileWarnings() as warned:
        seen: list[Seen | None] = []
        if reading.check:
            glance = functools.partial(look, thorough=streamed, max_pixels=reading.max_pixels)
            seen = _each(paths, lambda row: glance(paths[row]), bad, reading.progress)
        train = seen[: len(files["train"][0])] if "train" in files else []
        square, notices = _squared(size, reading, [one for one in train if one])
        found = len(bad)
        place = _kept(root, paths, square, reading, bad) if reading.check else None
        images: np.ndarray | None = None if place is None or streamed else place.images
        # Otherwise `_kept` has already decoded all of them.
        if place is None and not streamed and len(bad) == found:
            images = _decoded(paths, square, reading, bad)
    if bad:
        notices.append(bad_images({str(paths[row]): bad[row] for row in sorted(bad)}, reading.on_error))
        _check_classes(files, bad)
    if streamed and reading.check:
        notices.append(streaming_notice(len(paths), side, None if place is None else place.file))
    return Images(_splits(root, files, bad, images, place, square, reading), square, notices + warned.lines)


def _squared(size: int, reading: Reading, train: Sequence[Seen]) -> tuple[Square, list[str]]:
    """Returns the preprocessing for the images, and notices about it."""
    if reading.square is not None:
        # Image files may differ in size.
        return dataclasses.replace(reading.square, keep_square=False), []
    integers, floats, notices = ranges(train)
    square = reading.square_of(size, integers, floats)
    return square, notices + decoding_notices(train, square) + fit_notices([one.size for one in train], square)


def _kept(root: Path, paths: Sequence[Path], square: Square, reading: Reading, bad: dict[int, str]) -> Stored | None:
    """Returns the decoded images on disk of `paths` without the rows in `bad`, to which unreadable files are added.

    None if they cannot be kept there, or if unreadable files end the run.
    """
    rows = [row for row in range(len(paths)) if row not in bad]
    readable = [paths[row] for row in rows]
    place = stored(root, readable, square)
    if place is None:
        return None
    intact = _each(readable, place.is_intact, {}, reading.progress)
    todo = [row for row, is_intact in enumerate(intact) if not is_intact]
    failed: dict[int, str] = {}
    for first in range(0, len(todo), SUBMITTED):
        if not _store(place, readable, todo[first : first + SUBMITTED], square, reading, failed):
            return None
    if not failed:
        return place
    bad |= {rows[row]: why for row, why in failed.items()}
    # Without the unreadable ones they have another place.
    return _kept(root, paths, square, reading, bad) if reading.on_error == "skip" else None


def _store(
    place: Stored, paths: Sequence[Path], rows: Sequence[int], square: Square, reading: Reading, failed: dict[int, str]
) -> bool:
    """Decodes some of `paths` to disk and adds unreadable ones to `failed`; returns whether the disk had room."""
    full: list[OSError] = []
    done = int(place.decoded.sum())

    def decode(number: int) -> None:
        image = square.read(paths[rows[number]], reading.max_pixels)
        try:
            write(rows[number], image)
        except OSError as error:
            full.append(error)

    errors: dict[int, str] = {}
    try:
        with place.writing() as write:
            here = [paths[row] for row in rows]
            _each(here, decode, errors, lambda count, _: reading.progress(done + count, len(paths)))
    except (OSError, UserError) as error:
        full.append(OSError(str(error)))
    failed |= {rows[number]: why for number, why in errors.items()}
    return not full


def _decoded(paths: Sequence[Path], square: Square, reading: Reading, bad: dict[int, str]) -> np.ndarray:
    """Decodes `paths` to uint8 [n, side, side, 3], without the rows in `bad`, to which unreadable files are added."""
    rows = [row for row in range(len(paths)) if row not in bad]
    images = np.empty((len(rows), square.side, square.side, 3), np.uint8)

    def decode(place: int) -> None:
        images[place] = square.read(paths[rows[place]], reading.max_pixels)

    failed: dict[int, str] = {}
    _each([paths[row] for row in rows], decode, failed, reading.progress)
    bad |= {rows[place]: why for place, why in failed.items()}
    left = [place for place in range(len(rows)) if place not in failed]
    for new, old in enumerate(left):  # in place, because there may be no memory for a copy
        if new != old:
            images[new] = images[old]
    return images[: len(left)]


def _each(
    paths: Sequence[Path], action: Callable[[int], T], bad: dict[int, str], progress: Callable[[int, int], None]
) -> list[T | None]:
    """Calls `action` with the row of each path, in threads; failures give None and add their reason to `bad`."""

    def attempt(row: int) -> T | None:
        try:
            return action(row)
        except UNREADABLE as error:
            bad[row] = reason(error, paths[row])
            return None

    rows, results = range(len(paths)), []
    with concurrent.futures.ThreadPoolExecutor(DECODING_THREADS) as pool:
        for first in range(0, len(rows), SUBMITTED):
            for result in pool.map(attempt, rows[first : first + SUBMITTED]):
                results.append(result)
                progress(len(results), len(rows))
    return results


def _check_classes(files: Files, bad: Mapping[int, str]) -> None:
    """Raises UserError if a split, or a class in it, has no readable image left."""
    first = 0
    for name, (paths, targets) in files.items():
        left = [row for row in range(len(paths)) if first + row not in bad]
        # Without classes, all images are of one.
        labels = targets.get("label", np.zeros(len(paths), np.int32))
        gone = set(labels.tolist()) - set(labels[left].tolist())
        if gone:
            example = next(path for path, label in zip(paths, labels, strict=True) if label in gone)
            what = f"of the class of {example} " if "label" in targets else ""
            raise UserError(f"no {name} image {what}is readable; repair or remove them")
        first += len(paths)


def _splits(
    root: Path,
    files: Files,
    bad: Mapping[int, str],
    images: np.ndarray | None,
    place: Stored | None,
    square: Square,
    reading: Reading,
) -> dict[str, Split]:
    """Builds the splits without the rows in `bad`, from `images`; if that is None, streamed from `place` or files."""
    splits: dict[str, Split] = {}
    first = taken = 0
    for name, (paths, all_targets) in files.items():
        left = [row for row in range(len(paths)) if first + row not in bad]
        targets = {target: values[left] for target, values in all_targets.items()}
        readable = [paths[row] for row in left]
        count = len(readable)
        if images is None:
            decode = functools.partial(_decode_or_refuse, readable, square, reading)
            if place is not None:
                decode = functools.partial(_stored_or_decoded, place, taken, decode)
            splits[name] = StreamedSplit(decode, np.arange(count), targets, _names(root, readable))
        else:
            splits[name] = ArraySplit({"image": images[taken : taken + count]}, targets, _names(root, readable))
        first, taken = first + len(paths), taken + count
    return splits


def _stored_or_decoded(place: Stored, first: int, decode: Callable[[int], Batch], row: int) -> Batch:
    """Returns the image from disk, or decodes it again if it was damaged there."""
    return {"image": np.array(place.images[first + row])} if place.is_intact(first + row) else decode(row)


def _names(root: Path, paths: Sequence[Path]) -> list[str]:
    """Returns display names, with invalid UTF-8 replaced."""
    return [os.fsencode(path.relative_to(root)).decode(errors="replace") for path in paths]


def _decode_or_refuse(paths: Sequence[Path], square: Square, reading: Reading, row: int) -> Batch:
    try:
        return {"image": square.read(paths[row], reading.max_pixels)}
    except UNREADABLE as error:
        what = f"{paths[row]} cannot be read"
        if reading.check:
            what += " any more, although it could when the run began"
        remedy = "repair it and add --resume to the same command" if reading.check else "repair or remove it"
        raise UserError(f"{what} ({reason(error, paths[row])}); {remedy}") from error
