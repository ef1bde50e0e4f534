"""BERT and its relatives in torch: transformers' networks for sequence classification.

| ours                                | BERT, RoBERTa          | DistilBERT                          |
| ----------------------------------- | ---------------------- | ----------------------------------- |
| encoder.layer.0.attention.self.query | the same              | transformer.layer.0.attention.q_lin |
| encoder.layer.0.intermediate.dense  | the same               | transformer.layer.0.ffn.lin1        |
| pooler.dense                        | the same; RoBERTa: classifier.dense | pre_classifier         |
| classifier                          | the same; RoBERTa: classifier.out_proj | classifier          |

The encoder's names begin with the kind (`bert.`), which files of the encoder alone leave out. Norms of Google's own
conversions have TensorFlow's `gamma` and `beta`. Where sentence-transformers takes the mean of the tokens, transformers
has no classifier, and we add one.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from convert.names import PREFIX, Dialect
from convert.reference import Tensors
from convert.texts import TextReference
from sft_jax.models.bert import VARIANTS, Kind, Variant
from sft_jax.models.transformer import DEVIATION

# The name of a parameter of the first layer, by the name of the kind.
FIRST = {
    "bert": "encoder.layer.0.attention.self.query.weight",
    "roberta": "encoder.layer.0.attention.self.query.weight",
    "distilbert": "transformer.layer.0.attention.q_lin.weight",
}


def _dialects(kind: Kind) -> tuple[Dialect, ...]:
    name, first = kind.name, re.escape(FIRST[kind.name])
    norms = ((r"(.+\.LayerNorm)\.gamma", r"\1.weight"), (r"(.+\.LayerNorm)\.beta", r"\1.bias"))
    encoder = r"(?=embeddings|encoder|transformer|pooler)"
    alone = [(encoder + pattern, rf"{name}.{replacement}") for pattern, replacement in norms]
    return (
        Dialect(None, re.compile(rf"{PREFIX}{name}\.{first}"), norms),
        Dialect(
            "those of the encoder alone",
            re.compile(rf"(?P<prefix>(?:(?!.*(?:{'|'.join(FIRST)})\.).*\.)?){first}"),
            (*alone, (encoder + r"(.+)", rf"{name}.\1")),
        ),
    )


class MeanClassifier(torch.nn.Module):
    """A linear classifier of the mean of BERT's tokens, as sentence-transformers pools them."""

    def __init__(self, config: Any):
        super().__init__()
        import transformers

        self.config = config
        self.bert = transformers.BertModel(config, add_pooling_layer=False)
        self.classifier = torch.nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> Any:
        """Returns an object whose `logits` are [batch, outputs]."""
        import transformers

        states = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        weights = attention_mask[..., None].to(states.dtype)
        logits = self.classifier((states * weights).sum(1) / weights.sum(1))
        return transformers.modeling_outputs.SequenceClassifierOutput(logits=logits)


class BertReference(TextReference):
    """See `Reference`."""

    title = "a BERT"
    landmark = "encoder.layer.0.attention.self.query.weight (DistilBERT: transformer.layer.0.attention.q_lin.weight)"
    body = ("bert.", "roberta.", "distilbert.", "classifier.dense.", "pre_classifier.")

    def empty(self, arch: str, outputs: int) -> torch.nn.Module:
        """See `TextReference`."""
        import transformers

        variant: Variant = VARIANTS[arch]
        kind = variant.kind
        common: dict[str, Any]
        common = {
            "vocab_size": variant.vocabulary,
            "max_position_embeddings": kind.positions,
            "pad_token_id": kind.padding,
        }
        config: Any
        network: Any
        if kind.name == "distilbert":
            shape = {"dim": variant.width, "n_layers": variant.depth, "n_heads": variant.heads}
            free = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
            config = transformers.DistilBertConfig(**common | shape | free, hidden_dim=4 * variant.width)
            network = transformers.DistilBertForSequenceClassification
        else:
            title = kind.name.capitalize()  # Bert, Roberta
            network = getattr(transformers, f"{title}ForSequenceClassification")
            config = getattr(transformers, f"{title}Config")(
                **common,
                hidden_size=variant.width,
                num_hidden_layers=variant.depth,
                num_attention_heads=variant.heads,
                intermediate_size=4 * variant.width,
                type_vocab_size=kind.segments,
                layer_norm_eps=kind.epsilon,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        config.num_labels = outputs
        with torch.device("meta"):
            return MeanClassifier(config) if variant.pool == "mean" else network(config)

    def module(self, arch: str, outputs: int, state_dict: Mapping[str, torch.Tensor], stem: str) -> torch.nn.Module:
        """See `Reference`."""
        module = self.empty(arch, outputs)
        module.load_state_dict(dict(state_dict), strict=True, assign=True)
        # Constants that are not in state_dicts.
        embeddings = _encoder(module).embeddings
        for name, buffer in list(embeddings.named_buffers()):
            places = torch.arange(buffer.shape[1])[None]
            setattr(embeddings, name, places if name == "position_ids" else torch.zeros_like(places))
        return module.eval()

    def stages(self, module: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """Returns the embeddings and every layer."""
        encoder = _encoder(module)
        blocks = encoder.transformer.layer if hasattr(encoder, "transformer") else encoder.encoder.layer
        return {"embeddings": encoder.embeddings} | {f"encoder.layer.{i}": block for i, block in enumerate(blocks)}

    def dialects(self, arch: str) -> tuple[Dialect, ...]:
        """See `Reference`."""
        return _dialects(VARIANTS[arch].kind)

    def width(self, state_dict: Mapping[str, torch.Tensor]) -> int | None:
        """See `Reference`."""
        norms = (tensor for name, tensor in state_dict.items() if name.endswith(".embeddings.LayerNorm.weight"))
        return next((norm.numel() for norm in norms), None)

    def siblings(self, state_dict: Mapping[str, torch.Tensor]) -> list[str]:
        """Returns the networks with as many kinds of tokens, channels and layers."""
        return [name for name, known in VARIANTS.items() if _looks_like(known, state_dict)]

    def adapted(self, state_dict: Mapping[str, torch.Tensor], arch: str) -> tuple[Tensors, list[str]]:
        """Drops constants, and the pooler where the mean takes its place; adds one where only a new head needs it."""
        variant, notices = VARIANTS[arch], []
        kind, leaves = variant.kind, ("weight", "bias")
        tensors = {name: tensor for name, tensor in state_dict.items() if not name.endswith("embeddings.position_ids")}
        usual, place = f"{kind.name}.pooler.dense", kind.module_path("pooler.dense")
        if variant.pool == "mean":
            unused, instead = {usual, place}, "takes the mean of the tokens, as sentence-transformers does"
        else:
            unused, instead = {usual} - {place}, f"has {place} instead"
        dropped = {f"{module}.{leaf}" for module in unused for leaf in leaves} & tensors.keys()
        if dropped:
            tensors = {name: tensor for name, tensor in tensors.items() if name not in dropped}
            notices.append(f"dropped its pooler: {arch} {instead}")
        has_head = f"{kind.module_path('classifier')}.weight" in tensors
        if variant.pool == "pooler" and not has_head and f"{place}.weight" not in tensors:
            drawn = torch.randn(variant.width, variant.width, generator=torch.Generator().manual_seed(0))
            tensors |= {f"{place}.weight": DEVIATION * drawn, f"{place}.bias": torch.zeros(variant.width)}
            notices.append(f"it has no {place}, the layer before the head: a new one was drawn, as transformers does")
        return tensors, notices


def _looks_like(variant: Variant, state_dict: Mapping[str, torch.Tensor]) -> bool:
    table = state_dict.get(f"{variant.kind.name}.embeddings.word_embeddings.weight")
    layer = variant.kind.module_path("encoder.layer.0.output.dense").replace(".0.", r"\.(\d+)\.")
    layers = {match[1] for name in state_dict if (match := re.match(layer, name))}
    if table is None or len(layers) != variant.depth:
        return False
    return tuple(table.shape) == (variant.vocabulary, variant.width)


def _encoder(module: Any) -> Any:
    return getattr(module, module.config.model_type)
