"""Images that are in more than one part: counted and said, and refused where the test images are trained on."""

import collections
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sft_jax.data.dataset import DECODING_THREADS
from sft_jax.data.sources.listing import LabelledFile, Parts, counted, some
from sft_jax.errors import UserError

ALLOW = "take them out of one of the two, or allow it with --config.data.allow_overlap=True"
# Read of files of equal size before all of them is: enough to tell nearly all images apart.
HEAD_BYTES = 4096
# Files whose contents are compared at most.
MOST_FILES = 100_000

# What is trained on, or chooses the epoch, should be none of what is scored.
PAIRS = (("train", "test"), ("train", "val"), ("val", "test"))
KEYS = {"train": "train", "val": "validation", "test": "test"}


def check_files(root: Path, parts: Parts, notices: list[str], *, allow_overlap: bool) -> None:
    """Says how many files are in two parts: the same file, by links, or copies of it.

    Raises:
      UserError: a file of the training part is in the test part too.
      OSError: a file cannot be looked at.
    """
    status = {file.name: (root / file.name).stat() for files in parts.values() for file in files}
    by_size = collections.defaultdict(set)
    for part, files in parts.items():
        for file in files:
            by_size[status[file.name].st_size].add(part)
    # Files of one size in one part only are none of another part's.
    likely = {
        part: [file for file in files if len(by_size[status[file.name].st_size]) > 1] for part, files in parts.items()
    }
    identity = {name: f"{found.st_dev} {found.st_ino}" for name, found in status.items()}
    content = _contents(root, {file.name: status[file.name].st_size for files in likely.values() for file in files})
    if content is None:
        notices.append(f"copies of an image in two parts were not looked for: more than {MOST_FILES:,} may be some")
        content = {}
    for one, other in PAIRS:
        same = _pairs(likely[one], likely[other], identity)
        linked = {file.name for _, file in same}
        copies = [pair for pair in _pairs(likely[one], likely[other], content) if pair[1].name not in linked]
        if same:
            are = "is" if len(same) == 1 else "are"
            line = f"{counted(len(same))} of the {other} part {are} in the {one} part too: {_names(same)}"
            if (one, other) == PAIRS[0] and not allow_overlap:
                raise UserError(f"{line}; {ALLOW}")
            notices.append(line)
        if copies:
            are = "is a copy of a" if len(copies) == 1 else "are copies of"
            what = f"{one} image{'' if len(copies) == 1 else 's'}"
            notices.append(f"{counted(len(copies))} of the {other} part {are} {what}: {_names(copies)}")


def check_positions(
    positions: Mapping[str, Mapping[str, Sequence[range]]], splits: Mapping[str, str], *, allow_overlap: bool
) -> list[str]:
    """Says how many records of a prepared set are in two of its splits.

    Args:
      positions: part -> file -> the records of it that are in the part's split.
      splits: part -> what the user calls its split.
      allow_overlap: see `check_files`.

    Raises:
      UserError: test images are trained on.
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
            ("train", "test"): "the test images are trained on",
            (
                "train",
                "val",
            ): "validation images are trained on, so the best epoch is chosen by what was learnt by heart",
            ("val", "test"): "the best epoch is chosen on test images",
        }[one, other]
        keys = " and ".join(f"data.{KEYS[part]}={splits[part]}" for part in (one, other))
        line = f"{keys} have {counted(shared)} in common: {meaning}"
        if (one, other) == PAIRS[0] and not allow_overlap:
            raise UserError(f"{line}; name splits that have none, or allow it with --config.data.allow_overlap=True")
        notices.append(line)
    return notices


def _pairs(
    ones: Iterable[LabelledFile], others: Iterable[LabelledFile], mark: dict[str, str]
) -> list[tuple[LabelledFile, LabelledFile]]:
    """Each of `others` with one of `ones` that has the same mark, where there is one."""
    first = {mark[file.name]: file for file in ones if file.name in mark}
    return [(first[mark[file.name]], file) for file in others if mark.get(file.name) in first]


def _names(pairs: Iterable[tuple[LabelledFile, LabelledFile]]) -> str:
    return some(f"{other.name} ({one.name})" for one, other in pairs)


def _contents(root: Path, sizes: dict[str, int]) -> dict[str, str] | None:
    """Name -> a digest of the content, of those files that may have a copy; None where they are too many to compare."""
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
