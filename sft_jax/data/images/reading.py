"""Settings for reading images of any source, and the handling of unreadable ones."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
from ml_collections import ConfigDict

from sft_jax.data import crops
from sft_jax.data.images.formats import MAX_PIXELS
from sft_jax.data.images.square import Range, Square
from sft_jax.errors import UserError
from sft_jax.runtime.files import write_bytes
from sft_jax.runtime.memory import MEMORY_FRACTION

# Maximum number of unreadable images named in a message; if there are more, this file lists them all.
NAMED, LIST = 3, "bad_images.txt"


def _silent(done: int, total: int) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Reading:
    """Settings for reading images.

    Attributes:
      fit, interpolation, kept, decoding: see `Square`.
      on_error: "stop" or "skip", for unreadable images.
      max_pixels: larger images count as unreadable.
      memory_bytes: memory limit for decoded images, above which they are decoded on demand; None for half of the free
        memory.
      check: check all images up front, rather than each one when it is used.
      square: preprocessing of a trained network, to be repeated; None to derive it from `fit` and the images.
      progress: called with the number of images read so far and the total.
      ignored: the value of pixels of masks that are of no class; None if there is none.
    """

    fit: str = "crop"
    interpolation: str = "bilinear"
    kept: int | None = None
    decoding: str = "exact"
    on_error: str = "stop"
    max_pixels: int = MAX_PIXELS
    memory_bytes: int | None = None
    check: bool = True
    square: Square | None = None
    progress: Callable[[int, int], None] = _silent
    ignored: int | None = None

    @classmethod
    def of_config(cls, config: ConfigDict) -> "Reading":
        """Takes the settings from `config`, the section `data` of the config."""
        kept = crops.kept_side(config.size, config.keep_size, config.crop_pct)
        return cls(
            config.fit,
            config.interpolation,
            kept,
            config.decoding,
            config.on_error,
            config.max_pixels,
            ignored=config.ignore_index,
        )

    def square_of(self, size: int, integers: Range | None = None, floats: Range | None = None) -> Square:
        """Returns the preprocessing of files for a network that sees `size` pixels; for the rest see `Square`."""
        return self.square or Square(
            size,
            self.fit,
            interpolation=self.interpolation,
            integers=integers,
            floats=floats,
            kept=self.kept,
            decoding=self.decoding,
        )

    def must_stream(self, count: int, side: int) -> bool:
        """Returns whether `count` images of `side` x `side` pixels exceed the memory limit."""
        allowed = self.memory_bytes
        if allowed is None:
            allowed = int(MEMORY_FRACTION * psutil.virtual_memory().available)
        return bytes_of(count, side) > allowed


# The defaults.
PLAIN = Reading()


def bytes_of(count: int, side: int) -> int:
    """Returns the size in bytes of `count` images uint8 [side, side, 3]."""
    return count * side * side * 3


def streaming_notice(count: int, side: int, file: Path | None = None) -> str:
    """Returns the notice that the images do not fit into memory; `file` has the decoded images, if it is not None."""
    how = "decoding them anew in each epoch" if file is None else f"decoded once, into {file}, and read from there"
    return f"the images would need {bytes_of(count, side) / 2**30:.1f} GiB of memory: {how}"


def bad_images(reasons: Mapping[str, str], on_error: str) -> str:
    """Returns the notice that unreadable images were skipped, for `reasons` (file -> reason).

    Raises:
      UserError: `on_error` is "stop".
    """
    named = ", ".join(f"{name} ({why})" for name, why in list(reasons.items())[:NAMED])
    if len(reasons) > NAMED:
        named += f" and {len(reasons) - NAMED:,} more, all listed in {_listed(reasons)}"
    count = f"{len(reasons):,} image{'s' if len(reasons) > 1 else ''} cannot be read"
    if on_error == "skip":
        return f"{count} and {'were' if len(reasons) > 1 else 'was'} skipped: {named}"
    raise UserError(f"{count}: {named}; repair or remove them, or skip them with --config.data.on_error=skip")


def _listed(reasons: Mapping[str, str]) -> Path:
    """Writes all of `reasons` to a file in the current folder or, if that is not writable, a temporary folder."""
    lines = "".join(f"{name}\t{why}\n" for name, why in reasons.items()).encode(errors="backslashreplace")
    try:
        path = Path(LIST)
        write_bytes(path, lines)
    except UserError:
        path = Path(tempfile.mkdtemp(prefix="sft_jax_"), LIST)
        write_bytes(path, lines)
    return path
