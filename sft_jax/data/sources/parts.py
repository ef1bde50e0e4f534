"""Assigns images to splits where a source does not, by hashing file names."""

import hashlib
import unicodedata

import numpy as np

from sft_jax.data.sampling import stratified
from sft_jax.data.sources.labelling import LABELLINGS
from sft_jax.data.sources.listing import Label, LabelledFile, Listing, Parts, some
from sft_jax.data.sources.part_names import PARTS
from sft_jax.errors import UserError

# Fraction of the training images for each missing split. Each split has its own range of `position`.
FRACTIONS = {"test": 0.1, "val": 0.1}


def decided(listing: Listing, notices: list[str], *, old_seed: int | None = None) -> Parts:
    """Returns the files of the three splits; missing splits are drawn from the training images, class by class if each
    image has one.

    Args:
      listing: the files of the source.
      notices: receives a line if splits are drawn, and for each split that lacks a class.
      old_seed: seed of a run from the time when splits were drawn by seed.

    Raises:
      UserError: there are no training images, or too few to draw a split from.
    """
    given: Parts = {}
    for file in listing.files:
        given.setdefault(file.part or "train", []).append(file)
    if "train" not in given:
        raise UserError(f"{listing.place} has no training {listing.unit}s, only {' and '.join(given)}")
    missing = [part for part in FRACTIONS if part not in given]
    if missing:
        draw = _by_name if old_seed is None else _by_seed(old_seed)
        strata = _by_class(given["train"]) if listing.labelling == "class" else [given["train"]]
        given |= draw(strata, missing)
    for part in PARTS:
        if not given.get(part):
            raise UserError(
                f"{listing.place} has too few {listing.unit}s to draw a {part} split from; add {listing.unit}s or that "
                f"split"
            )
    if missing:
        counts = ", ".join(f"{len(given[part]):,} {part}" for part in PARTS)
        how = "by file name" if listing.unit == "image" else f"by the {listing.unit} itself"
        how = how if old_seed is None else "by the run's seed"
        notices.append(
            f"no {' or '.join(sorted(missing, reverse=True))} split: using about 10% of the training {listing.unit}s"
            f"{' of each class' if listing.labelling == 'class' else ''}, chosen {how}: {counts}"
        )
    classes_of = LABELLINGS[listing.labelling].classes_of
    named = listing.class_names if listing.labelling in ("class", "classes") else ()
    for part in PARTS if listing.labelling == "classes" else PARTS[1:]:
        here = {name for file in given[part] for name in classes_of(file.label)}
        lacking = [name for name in named if name not in here]
        if lacking:
            notices.append(f"the {part} split has no {listing.unit}s of {some(map(repr, lacking))}")
    return {part: given[part] for part in PARTS}


def position(key: str) -> float:
    """Hashes a file name to a number in [0, 1), the same on every machine."""
    # macOS decomposes accents in file names.
    name = unicodedata.normalize("NFC", key).encode(errors="surrogateescape")
    return int.from_bytes(hashlib.sha256(name).digest()[:6]) / 2**48


def _by_name(strata: list[list[LabelledFile]], missing: list[str]) -> Parts:
    """Assigns each file by its `position`, independently of the other files.

    Each split gets at least one image of a stratum, the one nearest to its range, if that has as many images as there
    are splits; all images of a smaller one are for training.
    """
    start = sum(fraction for part, fraction in list(FRACTIONS.items())[: list(FRACTIONS).index(missing[0])])
    edges = np.cumsum([FRACTIONS[part] for part in missing])
    names = [*missing, "train"]
    parts: Parts = {part: [] for part in names}
    for group in strata:
        if len(group) < len(names):
            parts["train"] += group
            continue
        ranked = sorted(((position(file.key) - start) % 1, file.key) for file in group)
        ones = np.arange(1, len(names))
        cuts = np.searchsorted([place for place, _ in ranked], edges)
        # At least one file per split: a forward pass over the cuts, then a cap from the right.
        cuts = np.maximum.accumulate(np.maximum(cuts - ones, 0)) + ones
        cuts = np.minimum(cuts, len(group) - ones[::-1])
        keys = np.split(np.array([key for _, key in ranked], object), cuts)
        chosen = {key: part for part, taken in zip(names, keys, strict=True) for key in taken}
        for file in group:
            parts[chosen[file.key]].append(file)
    return parts


def _by_seed(seed: int):
    """Returns the draw that runs used before they recorded their files."""

    def draw(strata: list[list[LabelledFile]], missing: list[str]) -> Parts:
        files = [file for group in strata for file in group]
        names = sorted(missing, reverse=True)
        labels = np.concatenate([np.full(len(group), label) for label, group in enumerate(strata)])
        fractions = [1 - sum(FRACTIONS[part] for part in names), *(FRACTIONS[part] for part in names)]
        rows = stratified(labels, fractions, seed)
        return {part: [files[row] for row in chosen] for part, chosen in zip(["train", *names], rows, strict=True)}

    return draw


def _by_class(files: list[LabelledFile]) -> list[list[LabelledFile]]:
    groups: dict[Label, list[LabelledFile]] = {}
    for file in files:
        groups.setdefault(file.label, []).append(file)
    return list(groups.values())
