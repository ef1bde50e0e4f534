"""BERT in torch: transformers' `BertForSequenceClassification`, and the same with a mean in its pooler's place.

Files have its names, those of `BertModel` without the prefix `bert.`, or TensorFlow's `gamma` and `beta` in norms, as
Google's own conversions do.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from convert.names import Dialect
from convert.reference import Reference, Tensors
from sft_jax.models.bert import EPSILON, POSITIONS, SEGMENTS, VARIANTS, Variant

_FIRST = r"encoder\.layer\.0\.attention\.self\.query\.weight"
_NORMS = ((r"(.+\.LayerNorm)\.gamma", ".weight"), (r"(.+\.LayerNorm)\.beta", ".bias"))
DIALECTS = (
    Dialect(
        None,
        re.compile(r"(?P<prefix>(?:.*\.)?)bert\." + _FIRST),
        tuple((pattern, r"\1" + leaf) for pattern, leaf in _NORMS),
    ),
    Dialect(
        "BertModel's",
        re.compile(r"(?P<prefix>(?:(?!.*bert\.encoder).*\.)?)" + _FIRST),
        (
            *((r"(?=embeddings|encoder)" + pattern, r"bert.\1" + leaf) for pattern, leaf in _NORMS),
            (r"((?:embeddings|encoder|pooler)\..+)", r"bert.\1"),
        ),
    ),
)
# Lengths of the texts, in tokens, on which both networks are compared.
LENGTHS = (16, 37)
# A constant that older versions of transformers save.
CONSTANT = "bert.embeddings.position_ids"


class MeanClassifier(torch.nn.Module):
    """A linear classifier of the mean of BERT's tokens, as sentence-transformers pools them."""

    def __init__(self, config: Any):
        super().__init__()
        import transformers

        self.bert = transformers.BertModel(config, add_pooling_layer=False)
        self.classifier = torch.nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> Any:
        """Returns an object whose `logits` are [batch, outputs]."""
        import transformers

        states = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        weights = attention_mask[..., None].to(states.dtype)
        logits = self.classifier((states * weights).sum(1) / weights.sum(1))
        return transformers.modeling_outputs.SequenceClassifierOutput(logits=logits)


def empty_module(arch: str, outputs: int) -> torch.nn.Module:
    """Returns the network `arch` in torch, without dropout, on the meta device."""
    import transformers

    variant: Variant = VARIANTS[arch]
    config = transformers.BertConfig(
        vocab_size=variant.vocabulary,
        hidden_size=variant.width,
        num_hidden_layers=variant.depth,
        num_attention_heads=variant.heads,
        intermediate_size=4 * variant.width,
        max_position_embeddings=POSITIONS,
        type_vocab_size=SEGMENTS,
        layer_norm_eps=EPSILON,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config.num_labels = outputs
    with torch.device("meta"):
        return MeanClassifier(config) if variant.pool == "mean" else transformers.BertForSequenceClassification(config)


class BertReference(Reference):
    """See `Reference`."""

    title = "a BERT"
    landmark = "bert.encoder.layer.0.attention.self.query.weight"
    body = ("bert.",)
    unit = "tokens"

    def module(self, arch: str, outputs: int, state_dict: Mapping[str, torch.Tensor], stem: str) -> torch.nn.Module:
        """See `Reference`."""
        module = empty_module(arch, outputs)
        module.load_state_dict(dict(state_dict), strict=True, assign=True)
        # Buffers that are not in state_dicts.
        length = torch.arange(POSITIONS)[None]
        embeddings: Any = module.bert.embeddings  # type: ignore[union-attr]
        embeddings.position_ids, embeddings.token_type_ids = length, torch.zeros_like(length)
        return module.eval()

    def stages(self, module: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """Returns the embeddings and every layer."""
        bert: Any = module.bert
        layers = {f"encoder.layer.{index}": layer for index, layer in enumerate(bert.encoder.layer)}
        return {"embeddings": bert.embeddings} | layers

    def dialects(self, arch: str) -> tuple[Dialect, ...]:
        """See `Reference`."""
        return DIALECTS

    def width(self, state_dict: Mapping[str, torch.Tensor]) -> int | None:
        """See `Reference`."""
        norm = state_dict.get("bert.embeddings.LayerNorm.weight")
        return None if norm is None else norm.numel()

    def sizes(self, arch: str) -> tuple[int, ...]:
        """Returns the lengths of the texts on which both networks are compared."""
        return LENGTHS

    def inputs(self, module: torch.nn.Module, size: int, count: int, seed: int) -> tuple[np.ndarray, ...]:
        """Returns pairs of random texts, the first of `size` tokens, the others shorter and padded."""
        random = np.random.default_rng(seed)
        embeddings: Any = module.bert.embeddings  # type: ignore[union-attr]
        tokens = random.integers(1, embeddings.word_embeddings.num_embeddings, (count, size), np.int32)
        place, lengths = np.arange(size)[None], np.linspace(size, -(-size // 2), count).astype(int)[:, None]
        return np.where(place < lengths, tokens, 0), (place >= lengths // 2).astype(np.uint8)

    def run(self, module: torch.nn.Module, *inputs: np.ndarray) -> torch.Tensor:
        """See `Reference`."""
        tokens, segments = (torch.from_numpy(array).long() for array in inputs)
        return module(input_ids=tokens, attention_mask=(tokens > 0).long(), token_type_ids=segments).logits

    def siblings(self, state_dict: Mapping[str, torch.Tensor]) -> list[str]:
        """Returns the networks with as many kinds of tokens, channels and layers."""
        table = state_dict.get("bert.embeddings.word_embeddings.weight")
        if table is None or table.ndim != 2:
            return []
        layers = {match[1] for name in state_dict if (match := re.match(r"bert\.encoder\.layer\.(\d+)\.", name))}
        found = (*table.shape, len(layers))
        return [name for name, known in VARIANTS.items() if (known.vocabulary, known.width, known.depth) == found]

    def adapted(self, state_dict: Mapping[str, torch.Tensor], arch: str) -> tuple[Tensors, list[str]]:
        """Drops the pooler where the mean takes its place, and a constant."""
        tensors, notices = dict(state_dict), []
        tensors.pop(CONSTANT, None)
        pooler = [name for name in tensors if name.startswith("bert.pooler.")]
        if pooler and VARIANTS[arch].pool == "mean":
            tensors = {name: tensor for name, tensor in tensors.items() if name not in pooler}
            notices.append(f"dropped its pooler: {arch} takes the mean of the tokens, as sentence-transformers does")
        return tensors, notices
