"""Runs of a few seconds on texts: networks of few layers, a tokenizer of whole words, and texts that they can learn."""

import json

import numpy as np
import tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from sft_jax.config import complete
from sft_jax.main import observers_of
from sft_jax.models import bert, modernbert
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.training.observer import nobody
from sft_jax.training.trainer import train

NAME, VARIANT = "texts_of_test", bert.Variant(40, 24, 2, 3, pool="mean")
# Most texts are longer than what a token sees in its second layer; its padding is no token of the tokenizer's.
MODERN, MODERN_VARIANT = "modern_texts_of_test", modernbert.Variant(24, 2, 3, 36, window=3, vocabulary=40, padding=39)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = ("good", "fine", "bad", "dull", *(f"word{number}" for number in range(30)))
# Words that decide.
GOOD, BAD = WORDS[:2], WORDS[2:4]


def register(monkeypatch):
    """Makes the networks known."""
    from sft_jax.models import ARCHITECTURES

    for family, name, variant in ((bert, NAME, VARIANT), (modernbert, MODERN, MODERN_VARIANT)):
        monkeypatch.setitem(family.VARIANTS, name, variant)
        monkeypatch.setitem(ARCHITECTURES, name, family.architecture(name, variant))


def tokenizer():
    """Returns a tokenizer of `WORDS`, with special tokens as BERT's, as JSON."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    made = tokenizers.Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return made.to_str()


def examples(count, seed):
    """Returns (text, label) pairs of 1 to 20 words, of which one decides."""
    random = np.random.default_rng(seed)
    pairs = []
    for number in range(count):
        words = random.choice(WORDS[4:], int(random.integers(0, 20))).tolist()
        label = number % 2
        words.insert(int(random.integers(0, len(words) + 1)), str(random.choice(GOOD if label else BAD)))
        pairs.append((" ".join(words), "positive" if label else "negative"))
    return pairs


def scored(count, seed):
    """Returns (text, number) pairs: 1.5 for each of `GOOD` among four words that decide, and 0.25 more."""
    random = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        words = random.choice(WORDS[4:], int(random.integers(0, 12))).tolist()
        deciding = random.choice((*GOOD, *BAD), 4).tolist()
        number = 0.25 + 1.5 * sum(word in GOOD for word in deciding)
        pairs.append((" ".join(random.permutation([*words, *deciding])), str(number)))
    return pairs


def write(folder, make=examples, label="label"):
    """Writes a table for each split, of what `make` returns, and the tokenizer beside them; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (part, count) in enumerate((("train", 203), ("dev", 61), ("test", 77))):
        lines = [f"sentence\t{label}", *("\t".join(pair) for pair in make(count, seed))]
        (folder / f"{part}.tsv").write_text("\n".join(lines) + "\n")
    (folder / "tokenizer.json").write_text(tokenizer())
    return folder


def text_config(folder, **changes):
    values = {
        "task": "text",
        "epochs": 6,
        "batch_size": 16,
        "init": "scratch",
        "model.name": NAME,
        "data.source": f"text:{folder}",
        "text.tokenizer": str(folder / "tokenizer.json"),
        "text.length": 24,
        "optimizer.name": "lion",
        "optimizer.learning_rate": 0.002,
    }
    return complete(values | {key.replace("__", "."): value for key, value in changes.items()})


def run_on(folder, workdir, *, resume=False, observed=False, **changes):
    """Trains on the texts of `folder`, and if `observed` with the loggers and the report of the command line."""
    config, observers = text_config(folder, **changes), observers_of if observed else nobody
    return train(config, Run(workdir), resume=resume, console=Console(), command=["test"], observers=observers)


def json_lines(folder, pairs, name="train.jsonl", **more):
    """Writes (text, label) pairs as JSON Lines; returns the file."""
    file = folder / name
    file.write_text("".join(json.dumps({"text": text, "label": label, **more}) + "\n" for text, label in pairs))
    return file
