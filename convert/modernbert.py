"""ModernBERT in torch: transformers' `ModernBertForSequenceClassification`.

| ours                      | transformers                   |
| ------------------------- | ------------------------------ |
| embeddings.tok_embeddings | model.embeddings.tok_embeddings |
| layers.0.attn.Wqkv        | model.layers.0.attn.Wqkv       |
| pooler.dense, pooler.norm | head.dense, head.norm          |
| classifier                | classifier                     |

Files of the encoder alone leave out `model.`. Published are files of `ModernBertForMaskedLM`, whose layer before the
decoder becomes the one before the classifier, as in transformers.
"""

import importlib.metadata
import re
from collections.abc import Mapping
from typing import Any

import torch

from convert.names import PREFIX, Dialect
from convert.reference import Tensors
from convert.texts import TextReference
from sft_jax.errors import UserError
from sft_jax.models.modernbert import (
    CLS,
    EPSILON,
    GLOBAL_THETA,
    LOCAL_THETA,
    POSITIONS,
    VARIANTS,
    Variant,
    output_deviation,
)

# The first version of transformers whose layers share their rotations.
TRANSFORMERS = 5
_FIRST = r"layers\.0\.attn\.Wqkv\.weight"
DIALECTS = (
    Dialect(None, re.compile(rf"{PREFIX}model\.{_FIRST}")),
    Dialect(
        "those of the encoder alone",
        re.compile(rf"{PREFIX}(?<!\bmodel\.){_FIRST}"),
        ((r"((?:embeddings|layers|final_norm)\..+)", r"model.\1"),),
    ),
)
# What a config.json says of the function that shapes do not, of the encoder and of the head.
ENCODER = ("layer_types", "local_attention", "rope_parameters", "norm_eps", "hidden_activation")
HEAD = ("classifier_pooling", "classifier_activation")


class ModernBertReference(TextReference):
    """See `Reference`."""

    title = "a ModernBERT"
    landmark = "layers.0.attn.Wqkv.weight"
    body = ("model.", "head.dense.", "head.norm.")

    def empty(self, arch: str, outputs: int) -> torch.nn.Module:
        """See `TextReference`. Attention is eager, which gives padding that sees no token the mean of all."""
        import transformers

        config = _config(VARIANTS[arch])
        config.num_labels = outputs
        with torch.device("meta"):
            return transformers.ModernBertForSequenceClassification(config)

    def module(self, arch: str, outputs: int, state_dict: Mapping[str, torch.Tensor], stem: str) -> torch.nn.Module:
        """See `Reference`."""
        module: Any = self.empty(arch, outputs)
        module.load_state_dict(dict(state_dict), strict=True, assign=True)
        # Its frequencies are not in state_dicts.
        module.model.rotary_emb = type(module.model.rotary_emb)(module.config)
        return module.eval()

    def stages(self, module: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """Returns the embeddings and every layer."""
        encoder: Any = module.model
        layers = {f"layers.{index}": layer for index, layer in enumerate(encoder.layers)}
        return {"embeddings": encoder.embeddings} | layers

    def dialects(self, arch: str) -> tuple[Dialect, ...]:
        """See `Reference`."""
        return DIALECTS

    def width(self, state_dict: Mapping[str, torch.Tensor]) -> int | None:
        """See `Reference`."""
        norm = state_dict.get("model.final_norm.weight")
        return None if norm is None else norm.numel()

    def sizes(self, arch: str) -> tuple[int, ...]:
        """Returns a short length, and one at which most tokens see only a part of the text in local layers."""
        return (16, 3 * VARIANTS[arch].window + 8)

    def siblings(self, state_dict: Mapping[str, torch.Tensor]) -> list[str]:
        """Returns the networks with as many kinds of tokens, channels and layers."""
        table = state_dict.get("model.embeddings.tok_embeddings.weight")
        if table is None:
            return []
        depth = len({match[1] for name in state_dict if (match := re.match(r"model\.layers\.(\d+)\.", name))})
        shape = (*table.shape, depth)
        return [name for name, known in VARIANTS.items() if (known.vocabulary, known.width, known.depth) == shape]

    def adapted(self, state_dict: Mapping[str, torch.Tensor], arch: str) -> tuple[Tensors, list[str]]:
        """Adds the layer before the classifier, where only a new classifier needs it."""
        tensors, place = dict(state_dict), "head.dense"
        if "classifier.weight" in tensors or any(name.startswith("head.") for name in tensors):
            return tensors, []
        variant = VARIANTS[arch]
        drawn = torch.randn(variant.width, variant.width, generator=torch.Generator().manual_seed(0))
        tensors |= {f"{place}.weight": output_deviation(variant) * drawn, "head.norm.weight": torch.ones(variant.width)}
        return tensors, [f"it has no {place}, the layer before the head: a new one was drawn, as transformers does"]

    def check_config(self, config: Mapping[str, Any], arch: str, *, head: bool, source: str) -> None:
        """See `Reference`."""
        import transformers

        if config.get("model_type") != "modernbert":
            return
        try:
            theirs = transformers.ModernBertConfig.from_dict(dict(config))
        except Exception as error:  # transformers has many kinds
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"config.json beside {source} is not that of a ModernBERT: {reason}") from None
        ours = _config(VARIANTS[arch])
        for name in (*ENCODER, *(HEAD if head else ())):
            wanted, found = getattr(ours, name), getattr(theirs, name)
            if found != wanted:
                other = arch.removesuffix(CLS) if arch.endswith(CLS) else f"{arch}{CLS}"
                fits = other in VARIANTS and found == getattr(_config(VARIANTS[other]), name)
                advice = f": use --arch {other}" if fits else ", and no other network has it"
                raise UserError(f"{source} has {name}={found!r}, as config.json beside it says, not {wanted!r}{advice}")


def _config(variant: Variant) -> Any:
    """Returns transformers' configuration of a network. Raises UserError if its version is too old."""
    import transformers

    version = importlib.metadata.version("transformers")
    if int(version.partition(".")[0]) < TRANSFORMERS:
        raise UserError(
            f"ModernBERT needs transformers {TRANSFORMERS} or later, not {version}: pip install -U transformers"
        )
    config: Any = transformers.ModernBertConfig
    return config(
        vocab_size=variant.vocabulary,
        hidden_size=variant.width,
        intermediate_size=variant.hidden,
        num_hidden_layers=variant.depth,
        num_attention_heads=variant.heads,
        max_position_embeddings=POSITIONS,
        norm_eps=EPSILON,
        pad_token_id=variant.padding,
        layer_types=[
            "full_attention" if variant.is_global(layer) else "sliding_attention" for layer in range(variant.depth)
        ],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": GLOBAL_THETA},
            "sliding_attention": {"rope_type": "default", "rope_theta": LOCAL_THETA},
        },
        local_attention=2 * variant.window,
        classifier_pooling=variant.pool,
        attn_implementation="eager",
    )
