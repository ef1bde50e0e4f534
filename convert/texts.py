"""What the networks of texts of transformers have in common in torch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from convert.reference import Reference, Tensors
from sft_jax.models.architecture import Texts

# Lengths of the texts, in tokens, on which both networks are compared.
LENGTHS = (16, 37)


class TextReference(Reference):
    """The torch side of a family of networks of texts, see `Reference`."""

    unit = "tokens"
    axes = ("batch", "length")

    def empty(self, arch: str, outputs: int) -> torch.nn.Module:
        """Returns the network `arch`, without dropout, on the meta device."""
        raise NotImplementedError

    def sizes(self, arch: str) -> tuple[int, ...]:
        """Returns the lengths of the texts on which both networks are compared."""
        return LENGTHS

    def inputs(self, module: Any, size: int, count: int, seed: int) -> tuple[np.ndarray, ...]:
        """Returns pairs of random texts, the first of `size` tokens, the others shorter and padded."""
        random, config = np.random.default_rng(seed), module.config
        texts = Texts(config.vocab_size, config.pad_token_id, size)
        place, lengths = np.arange(size)[None], np.linspace(size, -(-size // 2), count).astype(int)[:, None]
        tokens = np.where(place < lengths, texts.drawn(random, (count, size)), np.int32(texts.padding))
        return tokens, (place >= lengths // 2).astype(np.uint8)

    def given(self, module: Any, *inputs: np.ndarray) -> Tensors:
        """See `Reference`. Segments are given to networks that tell them apart."""
        tokens, segments = (torch.from_numpy(array).long() for array in inputs)
        config = module.config
        given = {"input_ids": tokens, "attention_mask": (tokens != config.pad_token_id).long()}
        return given | ({"token_type_ids": segments} if getattr(config, "type_vocab_size", 0) > 1 else {})

    def logits(self, module: Any, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `Reference`."""
        return module(**given).logits
