"""Image files as a split: decoded once into memory, or each time they are needed where they do not fit."""

import concurrent.futures
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sft_jax.data.images import UNREADABLE, read_square
from sft_jax.data.types import DECODING_THREADS, ArraySplit, StreamedSplit
from sft_jax.errors import UserError


def decoded_split(root: Path, paths: Sequence[Path], labels: np.ndarray, size: int) -> ArraySplit:
    """The images of `paths`, all below `root`, as squares of `size` pixels in memory.

    Raises:
      UserError: some cannot be read; up to ten of them are named.
    """
    images = np.empty((len(paths), size, size, 3), np.uint8)

    def decode(row: int) -> str | None:
        try:
            images[row] = read_square(paths[row], size)
        except UNREADABLE as error:
            return f"{paths[row]} ({type(error).__name__})"
        return None

    with concurrent.futures.ThreadPoolExecutor(DECODING_THREADS) as pool:
        bad = [problem for problem in pool.map(decode, range(len(paths))) if problem]
    if bad:
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise UserError(f"{len(bad)} images cannot be read; mend or remove them: {', '.join(bad[:10])}{more}")
    return ArraySplit(images, labels, _names(root, paths))


def streamed_split(root: Path, paths: Sequence[Path], labels: np.ndarray, size: int) -> StreamedSplit:
    """`decoded_split` whose images are decoded when they are needed; one that cannot be read is an error then."""
    decode = functools.partial(_decode_or_refuse, paths, size)
    return StreamedSplit(decode, np.arange(len(paths)), labels, _names(root, paths))


def _names(root: Path, paths: Sequence[Path]) -> list[str]:
    """For people: what is no UTF-8 in a name is replaced."""
    return [os.fsencode(path.relative_to(root)).decode(errors="replace") for path in paths]


def _decode_or_refuse(paths: Sequence[Path], size: int, row: int) -> np.ndarray:
    try:
        return read_square(paths[row], size)
    except UNREADABLE as error:
        raise UserError(f"{paths[row]} cannot be read ({type(error).__name__}); mend or remove it") from error
