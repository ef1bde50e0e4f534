"""What is measured of texts: features, quality, and which are copies."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from ml_collections import ConfigDict

from sft_jax.data.sources.known import kind_of
from sft_jax.data.sources.labelling import LABELLINGS
from sft_jax.data.sources.texts.everything import all_texts
from sft_jax.data.texts.reading import Text
from sft_jax.inference.embedding import text_features
from sft_jax.inference.texts import TextClassifier
from sft_jax.inspect.copies import Pair, same
from sft_jax.inspect.examine import Measured
from sft_jax.inspect.neighbours import Neighbours
from sft_jax.inspect.text_quality import poor_texts

# Two texts are nearly the same if the cosine of their features is at least this, and at least this share of the words
# of either is in the other (Jaccard). Either alone takes questions of one form ("What is the capital of ...?"), or on
# one matter, for copies.
SIMILAR, SHARED = 0.9, 0.75


@dataclasses.dataclass(frozen=True)
class Writings:
    """The labelled texts of a source.

    Attributes:
      place: the file or folder.
      texts: the texts, or pairs of them.
      names: file and line, or the text's own file.
      labels: int32 [n].
      class_names: in label order.
      parts: the split of each; None where the source does not say.
      groups: what each belongs to; None where the source was not asked or does not say.
    """

    unit: ClassVar[str] = "text"

    place: Path
    texts: list[Text]
    names: list[str]
    labels: np.ndarray
    class_names: tuple[str, ...]
    parts: list[str | None]
    groups: list[str | None]

    def __len__(self) -> int:
        return len(self.names)


def load_writings(config: ConfigDict, notices: list[str], split: str | None, group: str | None = None) -> Writings:
    """Lists the texts of `config`, the whole configuration; see `all_texts` for the arguments and errors."""
    found = all_texts(config, split, notices, group=group)
    kind, rest = kind_of(config.data)
    parts: list[str | None] = [each.part for each in found.all]
    if kind == "tfds":
        parts = [None] * len(parts)
        notices.append(f"the splits of tfds:{rest} are not told apart, so that leaks between them count as duplicates")
    return Writings(
        found.place,
        [each.text for each in found.all],
        [each.name for each in found.all],
        LABELLINGS["class"].targets([each.label for each in found.all], found.class_names)["label"],
        found.class_names,
        parts,
        [each.group for each in found.all],
    )


def measure_texts(
    network: TextClassifier, writings: Writings, notices: list[str], after: Callable[[int, int], None]
) -> Measured:
    """Measures all texts with the features of `network`; see `text_features` for `after` and the errors.

    `notices` receives a line about each fault that most texts have.
    """
    features = text_features(network, writings.texts, after)
    faults = poor_texts(writings.texts, network.reading, notices)
    return Measured(np.arange(len(writings)), features, faults, functools.partial(text_pairs, writings.texts))


def text_pairs(texts: Sequence[Text], near: Neighbours) -> list[Pair]:
    """Finds pairs of copies: the same characters, the same words, or nearly the same words and features.

    Of more than two texts with the same characters, or words, each is paired with the first.
    """
    words = [tuple(tuple(re.findall(r"\w+", part.casefold())) for part in text) for text in texts]
    found = {(pair.one, pair.other): pair for pair in same(texts, exact=True)}
    # Texts of no words, such as ":-)" and ":-(", are not the same.
    for pair in same([each if any(each) else text for each, text in zip(words, texts, strict=True)], exact=False):
        found.setdefault((pair.one, pair.other), pair)
    cosines = 1 - near.distances**2 / 2
    for place, column in np.argwhere(cosines >= SIMILAR).tolist():
        one, other = sorted((place, int(near.rows[place, column])))
        if words[one] != words[other] and _shared(words[one], words[other]) >= SHARED:
            found.setdefault((one, other), Pair(one, other, float(cosines[place, column]), exact=False))
    return list(found.values())


def _shared(one: Sequence[Sequence[str]], other: Sequence[Sequence[str]]) -> float:
    """Returns the Jaccard similarity of two texts' words; of pairs, that of the parts that are less alike."""
    return min(
        len(set(own) & set(others)) / max(len(set(own) | set(others)), 1)
        for own, others in zip(one, other, strict=True)
    )
