"""How images are read, whatever their source, and what is done about those that cannot be."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
from ml_collections import ConfigDict

from sft_jax.data.images.formats import MAX_PIXELS
from sft_jax.data.images.square import Square
from sft_jax.errors import UserError
from sft_jax.runtime.files import write_bytes

# Decoded images may take this share of the memory that is free.
MEMORY_SHARE = 0.5
# So many images that cannot be read are named; where there are more, all of them are in this file.
NAMED, LIST = 3, "bad_images.txt"


def _silent(done: int, total: int) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Reading:
    """Settings for reading images.

    Attributes:
      fit: see `Square`.
      on_error: stop or skip, where images cannot be read.
      max_pixels: larger images count as such that cannot be read.
      memory_bytes: memory that decoded images may take; where they need more they are decoded when they are used. None
        for half of what is free.
      check: look at all images at once; otherwise at those that are asked for, when they are.
      square: what a trained network's images went through, to be done again; None for a new one's, which follows from
        `fit` and from the images.
      progress: called with the number of images that were read, and of all.
    """

    fit: str = "crop"
    on_error: str = "stop"
    max_pixels: int = MAX_PIXELS
    memory_bytes: int | None = None
    check: bool = True
    square: Square | None = None
    progress: Callable[[int, int], None] = _silent

    @classmethod
    def of_config(cls, config: ConfigDict) -> "Reading":
        """Of the part `data` of the configuration."""
        return cls(config.fit, config.on_error, config.max_pixels)

    def must_stream(self, count: int, side: int) -> bool:
        """Whether `count` images of `side` x `side` pixels need more memory than they may take."""
        allowed = self.memory_bytes
        if allowed is None:
            allowed = int(MEMORY_SHARE * psutil.virtual_memory().available)
        return bytes_of(count, side) > allowed


# Of a caller who has no wishes.
PLAIN = Reading()


def bytes_of(count: int, side: int) -> int:
    """Of `count` images uint8 [side, side, 3]."""
    return count * side * side * 3


def streaming_notice(count: int, side: int) -> str:
    """Says that so many images are not held in memory."""
    return f"the images need {bytes_of(count, side) / 2**30:.1f} GiB of memory: they are decoded again in every epoch"


def bad_images(reasons: Mapping[str, str], on_error: str) -> str:
    """The notice that images were left out which cannot be read, for `reasons` (file -> why).

    Raises:
      UserError: with `on_error` stop.
    """
    named = ", ".join(f"{name} ({why})" for name, why in list(reasons.items())[:NAMED])
    if len(reasons) > NAMED:
        named += f" and {len(reasons) - NAMED:,} more, all of them in {_listed(reasons)}"
    count = f"{len(reasons):,} image{'s' if len(reasons) > 1 else ''} cannot be read"
    if on_error == "skip":
        return f"{count} and {'were' if len(reasons) > 1 else 'was'} left out: {named}"
    raise UserError(f"{count}: {named}; mend or remove them, or leave them out with --config.data.on_error=skip")


def _listed(reasons: Mapping[str, str]) -> Path:
    """A file with all of `reasons`, in the current folder, or where it cannot be written in that of temporary files."""
    lines = "".join(f"{name}\t{why}\n" for name, why in reasons.items()).encode(errors="backslashreplace")
    try:
        path = Path(LIST)
        write_bytes(path, lines)
    except UserError:
        path = Path(tempfile.mkdtemp(prefix="sft_jax_"), LIST)
        write_bytes(path, lines)
    return path
