"""Batches of texts of similar lengths, for a network in use."""

from collections.abc import Iterator

import numpy as np

from sft_jax.data.texts.reading import TextReading, Tokens

# Texts are padded to the next of these numbers of tokens, so that few programs are compiled.
LENGTHS = (16, 32, 64, 128, 256, 512)


def batches(reading: TextReading, read: Tokens, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields tokenised texts in batches of similar lengths, so that little is padding.

    Args:
      reading: which tokenised them.
      read: the texts.
      size: the most texts of a batch.

    Yields:
      rows int [n], tokens int32 [n, length] and segments uint8 [n, length].
    """
    order = np.argsort(read.lengths, kind="stable")
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        longest = int(read.lengths[rows].max())
        length = min(next((known for known in LENGTHS if known >= longest), longest), reading.length)
        fill = ((0, 0), (0, max(length - read.tokens.shape[1], 0)))
        tokens = np.pad(read.tokens[rows, :length], fill, constant_values=reading.padding)
        yield rows, tokens, np.pad(read.segments[rows, :length], fill)
