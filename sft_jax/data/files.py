"""From listed image files to a data set: which part each is in, and their images in memory or decoded on demand."""

import dataclasses

import numpy as np
import psutil

from sft_jax.data.decoding import decoded_split, streamed_split
from sft_jax.data.listing import Listing, Record
from sft_jax.data.overlap import check_files
from sft_jax.data.parts import decided
from sft_jax.data.record import as_recorded, record_of
from sft_jax.data.types import Dataset, Split
from sft_jax.errors import UserError

# Decoded images may take this share of the memory that is free.
MEMORY_SHARE = 0.5


def load_listing(
    listing: Listing,
    size: int,
    notices: list[str],
    *,
    memory_bytes: int | None = None,
    recorded: Record | None = None,
    resuming: bool = False,
    old_seed: int | None = None,
    allow_overlap: bool = False,
) -> Dataset:
    """Reads the images of a source. Parts that are missing are taken from the training images, see `parts.decided`.

    Args:
      listing: the files.
      size: side in pixels to which images are brought (see `to_square`).
      notices: what the user should be told about them so far; more is added.
      memory_bytes: memory that images may take; where they need more they are decoded when they are used. Default: half
        of what is free.
      recorded: of a run that has begun, which image is in which part; where it has parts they are taken.
      resuming: see `as_recorded`.
      old_seed: see `decided`.
      allow_overlap: the same image may be in the training and in the test part.

    Raises:
      UserError: images that cannot be read, too few of them, or not those of the run.
    """
    root = listing.root
    try:
        if recorded is not None and recorded.parts is not None:
            parts = as_recorded(listing, recorded, notices, resuming=resuming)
        else:
            parts = decided(listing, notices, old_seed=old_seed)
            recorded = record_of(listing, parts)
            if memory_bytes != 0:
                check_files(root, parts, notices, allow_overlap=allow_overlap)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None

    needed = sum(map(len, parts.values())) * size * size * 3
    if memory_bytes is None:
        memory_bytes = int(MEMORY_SHARE * psutil.virtual_memory().available)
    if needed > memory_bytes > 0:
        notices.append(f"the images need {needed / 2**30:.1f} GiB of memory: they are decoded again in every epoch")
    label = {name: number for number, name in enumerate(recorded.class_names)}

    def read(part: str) -> Split:
        paths = [root / file.name for file in parts[part]]
        labels = np.array([label[file.class_name] for file in parts[part]], np.int32)
        return (streamed_split if needed > memory_bytes else decoded_split)(root, paths, labels, size)

    splits = {part: read(part) for part in parts}
    return Dataset(
        splits["train"],
        splits["val"],
        splits["test"],
        recorded.class_names,
        tuple(notices),
        dataclasses.replace(recorded, place=str(listing.place.absolute())),
    )
