"""The tokenizer of a network of texts: a `tokenizer.json`, the format of the `tokenizers` library."""

import json
from pathlib import Path

from sft_jax.errors import UserError
from sft_jax.models.architecture import Architecture

NAME = "tokenizer.json"


def of_file(file: Path, given: Path | None, architecture: Architecture) -> str | None:
    """Returns the tokenizer of the weights `file` as JSON; None for networks of images.

    Args:
      file: the weights; the tokenizer lies beside them, as in the folders of the hub.
      given: the value of `--tokenizer`, which is used instead.
      architecture: the network.

    Raises:
      UserError: there is none, it is none, or it has more kinds of tokens than the network.
    """
    if architecture.texts is None:
        if given is not None:
            raise UserError(f"--tokenizer {given} has no meaning for {architecture.name}, which takes images")
        return None
    path = file.with_name(NAME) if given is None else given
    if not path.is_file():
        where = f"there is no {NAME} beside {file}" if given is None else f"no such file: {path}"
        raise UserError(f"{where}; name the tokenizer with which {architecture.name} was trained: --tokenizer FILE")
    try:
        content = path.read_text(encoding="utf-8")
        parsed = json.loads(content)
        known = parsed["model"]["vocab"]
        # A list in the order of the numbers for Unigram, which XLM-RoBERTa has.
        numbers = range(len(known)) if isinstance(known, list) else known.values()
        count = max([*numbers, *(token["id"] for token in parsed.get("added_tokens", ()))]) + 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not a tokenizer with a vocabulary, as the tokenizers library saves it") from None
    if count > architecture.texts.vocabulary:
        raise UserError(
            f"{path} has {count:,} kinds of tokens, but {architecture.name} only {architecture.texts.vocabulary:,}; "
            f"it belongs to another network"
        )
    return content
