"""Turns a listing of image files into a dataset: assigns splits, and reads images into memory or on demand."""

import dataclasses

from sft_jax.data.dataset import Dataset
from sft_jax.data.images.decoding import read_images
from sft_jax.data.images.reading import PLAIN, Reading
from sft_jax.data.sources.labelling import LABELLINGS
from sft_jax.data.sources.listing import Listing, Record
from sft_jax.data.sources.overlap import check_files
from sft_jax.data.sources.parts import decided
from sft_jax.data.sources.record import as_recorded, record_of
from sft_jax.errors import UserError


def load_listing(
    listing: Listing,
    size: int,
    notices: list[str],
    *,
    reading: Reading = PLAIN,
    recorded: Record | None = None,
    resuming: bool = False,
    old_seed: int | None = None,
    allow_overlap: bool = False,
) -> Dataset:
    """Loads the images of a source. Missing splits are drawn from the training images, see `parts.decided`.

    Args:
      listing: the files.
      size: side length in pixels to which images are resized (see `Square`).
      notices: messages to the user so far; more are appended.
      reading: how the images are read.
      recorded: the record of an existing run; its splits, if it has any, are used.
      resuming: see `as_recorded`.
      old_seed: see `decided`.
      allow_overlap: allows the same image in the training and the test split.

    Raises:
      UserError: images are unreadable, too few, or not those of the run.
    """
    root = listing.root
    try:
        if recorded is not None and recorded.parts is not None:
            parts = as_recorded(listing, recorded, notices, resuming=resuming)
        else:
            parts = decided(listing, notices, old_seed=old_seed)
            recorded = record_of(listing, parts)
            if reading.check:
                check_files(root, parts, notices, allow_overlap=allow_overlap)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None

    targets = LABELLINGS[listing.labelling].targets
    files = {
        part: ([root / file.name for file in here], targets([file.label for file in here], recorded.class_names))
        for part, here in parts.items()
    }
    images = read_images(root, files, size, reading)
    return Dataset(
        images.splits["train"],
        images.splits["val"],
        images.splits["test"],
        recorded.class_names,
        (*notices, *images.notices),
        images.square,
        dataclasses.replace(recorded, place=str(listing.place.absolute())),
    )
