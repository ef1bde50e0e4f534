"""Loads labelled texts as a `Dataset` of tokens."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sft_jax.data.dataset import ArraySplit, Dataset, Lengths
from sft_jax.data.sources.labelling import LABELLINGS
from sft_jax.data.sources.listing import LabelledFile, Listing, Record, counted
from sft_jax.data.sources.part_names import PARTS
from sft_jax.data.sources.parts import decided
from sft_jax.data.sources.texts.examples import Example, Examples, doubtful
from sft_jax.data.texts.reading import TextReading, buckets
from sft_jax.errors import UserError
from sft_jax.runtime.files import digest

# Tokens of padding in a pass through the texts that make a further bucket worth its programs: compiling them for MiniLM
# takes two CPU cores 12 s, in which they train on 30,000 tokens, and runs pass through their texts some five times.
WORTH = 6_000


def load_texts(
    examples: Examples,
    place: str | None,
    reading: TextReading,
    notices: list[str],
    *,
    recorded: Record | None,
    resuming: bool,
) -> Dataset:
    """Loads texts; missing splits are drawn by the texts themselves, so that equal ones are in the same.

    Args:
      examples: the texts.
      place: what a run is to record of where they are.
      reading: how texts become tokens.
      notices: lines for the user; more are added.
      recorded: the record of an existing run, whose texts are to be used.
      resuming: whether that run is being resumed.

    Raises:
      UserError: there are no such texts, or they are not those of the run.
    """
    parts = _parts(examples, notices)
    notices += doubtful(parts)
    splits = {part: split_of(own, examples, reading, part, notices) for part, own in parts.items()}
    ends = buckets_of(np.concatenate([split.lengths.each for split in splits.values() if split.lengths]), recorded)
    record = Record(
        examples.class_names,
        place,
        digests={part: digest(split.inputs | split.targets, {}) for part, split in splits.items()},
        buckets=ends,
    )
    if recorded is not None:
        _check_recorded(examples.place, record, recorded, notices, resuming=resuming)
    train, validation, test = (in_buckets(splits[part], ends, reading.padding) for part in PARTS)
    return Dataset(train, validation, test, examples.class_names, tuple(notices), record=record, reading=reading)


def _parts(examples: Examples, notices: list[str]) -> dict[str, list[Example]]:
    """Returns the examples of each split; missing ones are drawn by their texts."""
    by_name = {example.name: example for example in examples.all}
    files = [LabelledFile(each.name, "\t".join(each.text), each.label, each.part) for each in examples.all]
    listing = Listing(examples.place, examples.place, examples.class_names, files, examples.labelling, unit="text")
    parts = decided(listing, notices)
    return {part: [by_name[file.name] for file in parts[part]] for part in PARTS}


def split_of(
    chosen: Sequence[Example], examples: Examples, reading: TextReading, part: str, notices: list[str]
) -> ArraySplit:
    """Tokenises those texts of `examples` that are `chosen`, with a single bucket.

    `notices` receives a line if some are longer than the limit.
    """
    tokens = reading.read([example.text for example in chosen])
    if cut := int(tokens.longer.sum()):
        notices.append(
            f"{counted(cut, f'{part} text')} of {len(chosen):,} longer than {reading.length} tokens cut off "
            f"there (text.length)"
        )
    targets = LABELLINGS[examples.labelling].targets([example.label for example in chosen], examples.class_names)
    lengths = Lengths(tokens.lengths, (tokens.tokens.shape[1],))
    names, texts = [each.name for each in chosen], [each.text for each in chosen]
    return ArraySplit(tokens.inputs(), targets, names, lengths, texts)


def in_buckets(split: ArraySplit, ends: Sequence[int], padding: int) -> ArraySplit:
    """Returns a split of texts with the buckets `ends`, padded to the last of them that it needs."""
    assert split.lengths is not None
    longest = split.inputs["tokens"].shape[1]
    needed = tuple(ends[: int(np.searchsorted(ends, longest)) + 1])
    fill = {"tokens": padding, "segments": 0}
    inputs = {
        name: np.pad(rows, ((0, 0), (0, needed[-1] - longest)), constant_values=fill[name])
        for name, rows in split.inputs.items()
    }
    return dataclasses.replace(split, inputs=inputs, lengths=Lengths(split.lengths.each, needed))


def buckets_of(lengths: np.ndarray, recorded: Record | None) -> tuple[int, ...]:
    """Returns the buckets of a run, on which the order of its batches depends, or new ones."""
    if recorded is None or (recorded.buckets is not None and recorded.buckets[-1] < lengths.max()):
        return buckets(lengths, WORTH)
    return recorded.buckets or buckets(lengths, worth=0)  # runs used not to record them, and needed the least padding


def _check_recorded(place: Path, now: Record, recorded: Record, notices: list[str], *, resuming: bool) -> None:
    before = recorded.digests or {}
    changed = [part for part, value in (now.digests or {}).items() if before.get(part) != value]
    if not changed:
        return
    line = f"{place}: the {' and '.join(changed)} texts or labels are not those with which the run began"
    if resuming:
        raise UserError(f"{line}; restore them, or start a new run from its weights with --config.init=RUN")
    notices.append(line)
