"""Detects images in more than one split: reports them, and refuses to train on test images."""

import collections
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sft_jax.data.dataset import DECODING_THREADS
from sft_jax.data.sources.listing import LabelledFile, Parts, counted, some
from sft_jax.data.sources.part_names import KEYS
from sft_jax.errors import UserError

ALLOW = "remove them from one of the two, or allow it with --config.data.allow_overlap=True"
# Files of equal size are first compared by this many leading bytes, which tells nearly all images apart.
HEAD_BYTES = 4096
# Maximum number of files whose contents are compared.
MOST_FILES = 100_000

# Training and model selection must not see the images used for scoring.
PAIRS = (("train", "test"), ("train", "val"), ("val", "test"))


def check_files(root: Path, parts: Parts, notices: list[str], *, allow_overlap: bool) -> None:
    """Reports how many files are in two splits, as links to the same file or as copies.

    Raises:
      UserError: the same file is in the training and the test split.
      OSError: a file is not accessible.
    """
    status = {file.name: (root / file.name).stat() for files in parts.values() for file in files}
    by_size = collections.defaultdict(set)
    for part, files in parts.items():
        for file in files:
            by_size[status[file.name].st_size].add(part)
    # A file whose size occurs in no other split cannot have a copy there.
    likely = {
        part: [file for file in files if len(by_size[status[file.name].st_size]) > 1] for part, files in parts.items()
    }
    identity = {name: f"{info.st_dev} {info.st_ino}" for name, info in status.items()}
    content = _contents(root, {file.name: status[file.name].st_size for files in likely.values() for file in files})
    if content is None:
        notices.append(f"not checked for copies of images across splits: more than {MOST_FILES:,} candidates")
        content = {}
    for one, other in PAIRS:
        same = _pairs(likely[one], likely[other], identity)
        linked = {file.name for _, file in same}
        copies = [pair for pair in _pairs(likely[one], likely[other], content) if pair[1].name not in linked]
        if same:
            are = "is" if len(same) == 1 else "are"
            line = f"{counted(len(same))} of the {other} split {are} also in the {one} split: {_names(same)}"
            if (one, other) == PAIRS[0] and not allow_overlap:
                raise UserError(f"{line}; {ALLOW}")
            notices.append(line)
        if copies:
            are = "is a copy of a" if len(copies) == 1 else "are copies of"
            what = f"{one} image{'' if len(copies) == 1 else 's'}"
            notices.append(f"{counted(len(copies))} of the {other} split {are} {what}: {_names(copies)}")


def check_positions(
    positions: Mapping[str, Mapping[str, Sequence[range]]],
    splits: Mapping[str, str],
    *,
    allow_overlap: bool,
    unit: str = "image",
) -> list[str]:
    """Reports how many records of a prepared dataset are in two of its splits.

    Args:
      positions: "train", "val" or "test" -> file -> the ranges of its records in that split.
      splits: "train", "val" or "test" -> the split expression that the user gave.
      allow_overlap: see `check_files`.
      unit: what messages call a record.

    Raises:
      UserError: the training split contains test records.
    """
    notices = []
    for one, other in PAIRS:
        shared = sum(
            max(0, min(left.stop, right.stop) - max(left.start, right.start))
            for file, ranges in positions.get(one, {}).items()
            for left in ranges
            for right in positions.get(other, {}).get(file, ())
        )
        if not shared:
            continue
        meaning = {
            ("train", "test"): f"the training split contains test {unit}s",
            ("train", "val"): f"the best epoch would be selected on {unit}s that the network was trained on",
            ("val", "test"): f"the best epoch would be selected on test {unit}s",
        }[one, other]
        keys = " and ".join(f"data.{KEYS[part]}={splits[part]}" for part in (one, other))
        line = f"{keys} have {counted(shared, unit)} in common: {meaning}"
        if (one, other) == PAIRS[0] and not allow_overlap:
            raise UserError(f"{line}; name disjoint splits, or allow it with --config.data.allow_overlap=True")
        notices.append(line)
    return notices


def _pairs(
    ones: Iterable[LabelledFile], others: Iterable[LabelledFile], identity: dict[str, str]
) -> list[tuple[LabelledFile, LabelledFile]]:
    """Pairs each of `others` with one of `ones` of the same identity, if there is one."""
    first = {identity[file.name]: file for file in ones if file.name in identity}
    return [(first[identity[file.name]], file) for file in others if identity.get(file.name) in first]


def _names(pairs: Iterable[tuple[LabelledFile, LabelledFile]]) -> str:
    return some(f"{other.name} ({one.name})" for one, other in pairs)


def _contents(root: Path, sizes: dict[str, int]) -> dict[str, str] | None:
    """Maps the names of files that may have copies to a digest of their content; None if there are too many."""
    if len(sizes) > MOST_FILES:
        return None
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        heads = dict(zip(sizes, pool.map(lambda name: _digest(root / name, HEAD_BYTES), sizes), strict=True))
        counts = collections.Counter((sizes[name], heads[name]) for name in sizes)
        likely = [name for name in sizes if counts[sizes[name], heads[name]] > 1]
        return dict(zip(likely, pool.map(lambda name: _digest(root / name), likely), strict=True))


def _digest(path: Path, head: int | None = None) -> str:
    with path.open("rb") as file:
        if head is not None:
            return hashlib.sha256(file.read(head)).hexdigest()
        return hashlib.file_digest(file, "sha256").hexdigest()
