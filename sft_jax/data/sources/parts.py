"""Which image is in which part, where a source does not say: drawn by the files' names alone."""

import hashlib
import unicodedata

import numpy as np

from sft_jax.data.sampling import stratified
from sft_jax.data.sources.listing import LabelledFile, Listing, Parts, some
from sft_jax.data.sources.part_names import PARTS
from sft_jax.errors import UserError

# Of the training images, where a part is missing. Each has a range of its own in `position`.
SHARES = {"test": 0.1, "val": 0.1}


def decided(listing: Listing, notices: list[str], *, old_seed: int | None = None) -> Parts:
    """The files of the three parts; what the source has none of is taken from training, class by class.

    Args:
      listing: what there is.
      notices: gets a line where a part is drawn, and where one lacks a class.
      old_seed: that of a run which began when parts were drawn by seed.

    Raises:
      UserError: no training images, or too few to take a part from.
    """
    given: Parts = {}
    for file in listing.files:
        given.setdefault(file.part or "train", []).append(file)
    if "train" not in given:
        raise UserError(f"{listing.place} has no training images, only {' and '.join(given)}")
    missing = [part for part in SHARES if part not in given]
    if missing:
        draw = _by_name if old_seed is None else _by_seed(old_seed)
        given |= draw(given["train"], missing)
    for part in PARTS:
        if not given.get(part):
            raise UserError(f"{listing.place} has too few images to take a {part} part from: add some, or such a part")
    if missing:
        counts = ", ".join(f"{len(given[part]):,} {part}" for part in PARTS)
        how = "by their names" if old_seed is None else "by the seed of the run"
        notices.append(
            f"no {' or '.join(sorted(missing, reverse=True))} part: about 10% of the training images of each class, "
            f"chosen {how}: {counts}"
        )
    for part in PARTS[1:]:
        here = {file.class_name for file in given[part]}
        lacking = [name for name in listing.class_names if name not in here]
        if lacking:
            notices.append(f"the {part} part has no image of {some(map(repr, lacking))}")
    return {part: given[part] for part in PARTS}


def position(key: str) -> float:
    """A number in [0, 1) that depends on nothing but the name of a file, the same on every machine."""
    # macOS decomposes accents in file names.
    name = unicodedata.normalize("NFC", key).encode(errors="surrogateescape")
    return int.from_bytes(hashlib.sha256(name).digest()[:6]) / 2**48


def _by_name(files: list[LabelledFile], missing: list[str]) -> Parts:
    """Each file goes where its `position` lies, whatever other files there are. Of a class that has enough of them each
    part gets one, the one nearest to its range; of a smaller one all are training images.
    """
    start = sum(share for part, share in list(SHARES.items())[: list(SHARES).index(missing[0])])
    edges = np.cumsum([SHARES[part] for part in missing])
    names = [*missing, "train"]
    found: Parts = {part: [] for part in names}
    for group in _by_class(files):
        if len(group) < len(names):
            found["train"] += group
            continue
        ranked = sorted(((position(file.key) - start) % 1, file.key) for file in group)
        ones = np.arange(1, len(names))
        cuts = np.searchsorted([place for place, _ in ranked], edges)
        # One each at least, from the left and from the right.
        cuts = np.maximum.accumulate(np.maximum(cuts - ones, 0)) + ones
        cuts = np.minimum(cuts, len(group) - ones[::-1])
        keys = np.split(np.array([key for _, key in ranked], object), cuts)
        chosen = {key: part for part, taken in zip(names, keys, strict=True) for key in taken}
        for file in group:
            found[chosen[file.key]].append(file)
    return found


def _by_seed(seed: int):
    """As runs did before they recorded their files."""

    def draw(files: list[LabelledFile], missing: list[str]) -> Parts:
        names = sorted(missing, reverse=True)
        labels = np.concatenate([np.full(len(group), label) for label, group in enumerate(_by_class(files))])
        fractions = [1 - sum(SHARES[part] for part in names), *(SHARES[part] for part in names)]
        rows = stratified(labels, fractions, seed)
        return {part: [files[row] for row in chosen] for part, chosen in zip(["train", *names], rows, strict=True)}

    return draw


def _by_class(files: list[LabelledFile]) -> list[list[LabelledFile]]:
    groups: dict[str, list[LabelledFile]] = {}
    for file in files:
        groups.setdefault(file.class_name, []).append(file)
    return list(groups.values())
