"""Tokenisation of texts, from the tokenizer of the pretrained network."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sft_jax.config.shipped import install_command
from sft_jax.errors import UserError
from sft_jax.models.architecture import Texts

# A text, or a pair of them, e.g. a question and an answer.
Text = tuple[str, ...]
# A token: its string, the characters it stands for, (0, 0) for special ones, and the text of a pair that they are of.
Piece = tuple[str, tuple[int, int], int]
# Texts that are tokenised at a time: what the library returns of each takes kilobytes.
BLOCK = 4096
# Programs are compiled for at most so many lengths of batches, all multiples of the unit.
BUCKETS, UNIT = 4, 8


class Tokens(NamedTuple):
    """Tokenised texts.

    Attributes:
      tokens: int32 [n, longest], padded at the ends.
      segments: uint8 [n, longest]: 1 for the second of a pair, if the tokenizer tells them apart.
      lengths: int32 [n], numbers of tokens.
      longer: bool [n], whether a text was longer than the limit and lost its end.
    """

    tokens: np.ndarray
    segments: np.ndarray
    lengths: np.ndarray
    longer: np.ndarray

    def inputs(self) -> dict[str, np.ndarray]:
        """Returns the network's inputs by name."""
        return {"tokens": self.tokens, "segments": self.segments}


@dataclasses.dataclass(frozen=True)
class TextReading:
    """How texts become tokens.

    Attributes:
      tokenizer: JSON of the `tokenizers` library, a `tokenizer.json`.
      length: the most tokens of a text, special ones included; of a pair, of both together.
      padding: number of the token that pads texts.
      columns: names of a table's columns with the texts, see `list_texts`; None: guessed.
    """

    tokenizer: str
    length: int
    padding: int
    columns: str | None = None

    @classmethod
    def of(cls, tokenizer: str, length: int, texts: Texts, columns: str | None = None) -> "TextReading":
        """Makes the reading for a network that takes `texts`.

        Raises:
          UserError: the network takes no texts of this length, or the tokenizer is not for it.
        """
        if length > texts.longest:
            raise UserError(
                f"config.text.length={length}: the network takes at most {texts.longest} tokens; "
                f"use --config.text.length={texts.longest}"
            )
        reading = cls(tokenizer, length, texts.padding, columns)
        kinds = reading._encoder.get_vocab_size(with_added_tokens=True)
        if kinds > texts.vocabulary:
            raise UserError(
                f"the tokenizer has {kinds:,} kinds of tokens, but the network only {texts.vocabulary:,}: it belongs "
                f"to another network"
            )
        return reading

    @functools.cached_property
    def _encoder(self) -> Any:
        try:
            import tokenizers
        except ModuleNotFoundError:
            raise UserError(f"reading texts needs the package tokenizers: {install_command('text')}") from None
        try:
            encoder = tokenizers.Tokenizer.from_str(self.tokenizer)
        except Exception as error:  # the library raises no other kind
            raise UserError(f"the tokenizer cannot be read: {error}") from None
        # A file may bring its own limit and padding, as those of sentence-transformers do.
        encoder.no_padding()
        encoder.enable_truncation(self.length)
        return encoder

    @functools.cached_property
    def unknown(self) -> int | None:
        """The token of what the tokenizer has no other for; None if it has one for everything."""
        name = json.loads(self.tokenizer)["model"].get("unk_token")
        found = None if name is None else self._encoder.token_to_id(name)
        return None if found is None else int(found)

    def read(self, texts: Sequence[Text]) -> Tokens:
        """Tokenises texts, or pairs of them, of which the longer one loses its end first."""
        rows: list[tuple[np.ndarray, np.ndarray]] = []
        longer: list[bool] = []
        for first in range(0, len(texts), BLOCK):
            for each in self._encoded(texts[first : first + BLOCK]):
                rows.append((np.array(each.ids, np.int32), np.array(each.type_ids, np.uint8)))
                longer.append(bool(each.overflowing))
        lengths = np.array([len(ids) for ids, _ in rows], np.int32)
        shape = (len(rows), int(lengths.max(initial=1)))
        tokens, segments = np.full(shape, self.padding, np.int32), np.zeros(shape, np.uint8)
        for row, (ids, types) in enumerate(rows):
            tokens[row, : len(ids)], segments[row, : len(ids)] = ids, types
        return Tokens(tokens, segments, lengths, np.array(longer, bool))

    def _encoded(self, texts: Sequence[Text]) -> Any:
        return self._encoder.encode_batch([text[0] if len(text) == 1 else text for text in texts])

    def random_texts(self, random: np.random.Generator, count: int) -> list[str]:
        """Returns texts of random words of the vocabulary, of up to `length` tokens."""
        kinds = self._encoder.get_vocab_size(with_added_tokens=False)
        sizes = np.linspace(1, self.length, count).astype(int)
        return [self._encoder.decode(random.integers(0, kinds, size).tolist()) for size in sizes]

    def pieces(self, text: Text) -> list[Piece]:
        """Returns the tokens of a text."""
        (encoded,) = self._encoded([text])
        which = [0 if number is None else number for number in encoded.sequence_ids]
        return list(zip(encoded.tokens, encoded.offsets, which, strict=True))


def buckets(lengths: np.ndarray, worth: int) -> tuple[int, ...]:
    """Chooses at most `BUCKETS` lengths, multiples of `UNIT`, that need the least padding for texts of `lengths`.

    Each length but one has to save `worth` tokens of padding.
    """
    rounded = -(-lengths // UNIT) * UNIT
    sizes, counts = np.unique(rounded, return_counts=True)
    # cost[k][j]: tokens of the texts up to size j in k + 1 buckets, the last of which is size j.
    upto = np.cumsum(counts)
    cost = [sizes * upto]
    before: list[np.ndarray] = []
    for _ in range(min(BUCKETS, len(sizes)) - 1):
        table = np.array(
            [
                [cost[-1][i] + sizes[j] * (upto[j] - upto[i]) if i < j else np.inf for i in range(len(sizes))]
                for j in range(len(sizes))
            ]
        )
        best = table.argmin(1)
        before.append(best)
        cost.append(table[np.arange(len(sizes)), best])
    chosen = [len(sizes) - 1]
    level = int(np.argmin([row[-1] + level * worth for level, row in enumerate(cost)]))
    for best in reversed(before[:level]):
        chosen.append(int(best[chosen[-1]]))
    return tuple(int(sizes[place]) for place in reversed(chosen))
