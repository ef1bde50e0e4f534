"""BERT (Devlin et al., 2018, arXiv:1810.04805), RoBERTa (arXiv:1907.11692) and their distilled versions.

Attribute paths are the keys of transformers' `BertModel`, also for the others; only the leaves have JAX's names.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from sft_jax import ops
from sft_jax.models.architecture import Architecture, Rule, Texts, located_by
from sft_jax.models.dropout import Dropout
from sft_jax.models.layers import Linear
from sft_jax.models.text_network import TextNetwork
from sft_jax.models.transformer import Dense, Embedding, LayerNorm, mean_of_tokens

# The longest text in tokens.
POSITIONS = 512


@dataclasses.dataclass(frozen=True)
class Kind:
    """What distinguishes BERT's relatives.

    Attributes:
      name: its name in transformers, which begins its parameters' names.
      segments: kinds of segments: the first text, and the second of a pair.
      padding: number of the padding token.
      counts_on: whether positions begin after the padding's number, which is the position of padding.
      epsilon: of layer normalisation.
      activation: of the pooler.
      names: pairs of a pattern for our path of a module and the reference's, after the name of the kind.
      outside: the same, for modules that the reference has beside the encoder.
    """

    name: str
    segments: int = 2
    padding: int = 0
    counts_on: bool = False
    epsilon: float = 1e-12
    activation: Callable[[jax.Array], jax.Array] = jnp.tanh
    names: tuple[tuple[str, str], ...] = ()
    outside: tuple[tuple[str, str], ...] = (("classifier", "classifier"),)

    @property
    def positions(self) -> int:
        """The number of position embeddings."""
        return POSITIONS + (self.padding + 1 if self.counts_on else 0)

    def module_path(self, path: str) -> str:
        """Returns the reference's path of one of our modules."""
        for ours, theirs in self.outside:
            if path == ours:
                return theirs
        for ours, theirs in self.names:
            if match := re.fullmatch(ours, path):
                return f"{self.name}.{match.expand(theirs)}"
        return f"{self.name}.{path}"


BERT = Kind("bert")
ROBERTA = Kind(
    "roberta",
    segments=1,
    padding=1,
    counts_on=True,
    epsilon=1e-5,
    outside=(("classifier", "classifier.out_proj"), ("pooler.dense", "classifier.dense")),
)
_LAYER = r"encoder\.layer\.(\d+)\."
DISTILBERT = Kind(
    "distilbert",
    segments=0,
    activation=jax.nn.relu,
    names=(
        (_LAYER + r"attention\.self\.([qkv])\w+", r"transformer.layer.\1.attention.\2_lin"),
        (_LAYER + r"attention\.output\.dense", r"transformer.layer.\1.attention.out_lin"),
        (_LAYER + r"attention\.output\.LayerNorm", r"transformer.layer.\1.sa_layer_norm"),
        (_LAYER + r"intermediate\.dense", r"transformer.layer.\1.ffn.lin1"),
        (_LAYER + r"output\.dense", r"transformer.layer.\1.ffn.lin2"),
        (_LAYER + r"output\.LayerNorm", r"transformer.layer.\1.output_layer_norm"),
    ),
    outside=(("classifier", "classifier"), ("pooler.dense", "pre_classifier")),
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """What distinguishes the networks.

    Attributes:
      vocabulary: number of kinds of tokens.
      width: channels of a token; the MLP has four times as many.
      depth: number of layers.
      heads: number of attention heads.
      pool: whether the head sees the first token after one more layer ("pooler"), or the mean of the tokens.
      kind: see `Kind`.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    pool: Literal["pooler", "mean"] = "pooler"
    kind: Kind = BERT


class Layer(nnx.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)): transformers' `BertLayer`."""

    def __init__(self, width: int, heads: int, epsilon: float, *, dtype, rngs: nnx.Rngs):
        def dense(inputs: int, outputs: int) -> Dense:
            return Dense(inputs, outputs, dtype=dtype, rngs=rngs)

        def added(inputs: int) -> Any:
            return nnx.Dict({"dense": dense(inputs, width), "LayerNorm": LayerNorm(width, epsilon=epsilon)})

        self.heads, self.dtype = heads, dtype
        own = nnx.Dict({name: dense(width, width) for name in ("query", "key", "value")})
        self.attention = nnx.Dict({"self": own, "output": added(width)})
        self.intermediate = nnx.Dict({"dense": dense(width, 4 * width)})
        self.output = added(4 * width)

    def __call__(self, x: jax.Array, mask: jax.Array, *, dropout: Dropout) -> jax.Array:
        """Maps rows x [batch * tokens, width], float32 or wider, to the same; mask is bool [batch, tokens]."""
        parts = [self.attention["self"][name] for name in ("query", "key", "value")]
        kernel = jnp.concatenate([part.kernel[...] for part in parts], axis=1)
        bias = jnp.concatenate([part.bias[...] for part in parts])
        qkv = ops.dense(x.astype(self.dtype), kernel, bias)
        mixed = ops.self_attention(qkv, mask.shape[1], self.heads, mask=mask, drop=dropout.of_attention(mask.shape[0]))
        x = _added(self.attention["output"], x, mixed, mask.shape[0], dropout)
        return _added(self.output, x, ops.gelu(self.intermediate["dense"](x)), mask.shape[0], dropout)


def _added(output: Any, x: jax.Array, branch: jax.Array, examples: int, dropout: Dropout) -> jax.Array:
    return output["LayerNorm"](x + dropout(output["dense"](branch), examples).astype(x.dtype))


class Bert(TextNetwork):
    """transformers' `BertForSequenceClassification` and its relatives.

    Args:
      variant: see `Variant`.
      num_classes: number of outputs.
      stem: unused; there is only one.
      dtype: of the operands of matrix products; the residual stream is float32 or wider.
      axis_name: the mapped axis over devices, of which dropout takes examples' places in the global batch.
      stochastic_depth: unused.
      dropout: rate after the embeddings, of every branch, and of the head's inputs, if there is a key.
      attention_dropout: rate of attention weights, if there is a key.
    """

    def __init__(
        self,
        variant: Variant,
        num_classes: int,
        *,
        stem: str = "imagenet",
        dtype: jax.typing.DTypeLike = jnp.float32,
        axis_name: str | None = None,
        stochastic_depth: float = 0.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.variant, width, kind = variant, variant.width, variant.kind
        self.padding, self.axis_name = kind.padding, axis_name
        self.dropout, self.attention_dropout = dropout, attention_dropout
        counts = {"word": variant.vocabulary, "position": kind.positions, "token_type": kind.segments}
        tables = {f"{name}_embeddings": Embedding(n, width, rngs=rngs) for name, n in counts.items() if n}
        self.embeddings: Any = nnx.Dict(tables | {"LayerNorm": LayerNorm(width, epsilon=kind.epsilon)})
        layers = [Layer(width, variant.heads, kind.epsilon, dtype=dtype, rngs=rngs) for _ in range(variant.depth)]
        self.encoder = nnx.Dict({"layer": nnx.List(layers)})
        has_pooler = variant.pool == "pooler"
        self.pooler = nnx.Dict({"dense": Dense(width, width, dtype=dtype, rngs=rngs)}) if has_pooler else None
        self.classifier = Linear(width, num_classes, rngs=rngs)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """See `TextNetwork`; without their places."""
        return self.embeddings["word_embeddings"](tokens)

    def pool(self, last: jax.Array, mask: jax.Array) -> jax.Array:
        """See `TextNetwork`."""
        if self.pooler is not None:
            return self.variant.kind.activation(self.pooler["dense"](last[:, 0]).astype(last.dtype))
        return mean_of_tokens(last, mask)

    def _stages(
        self, tokens: jax.Array, segments: jax.Array, words: jax.Array, dropout: Dropout
    ) -> Iterator[tuple[str, jax.Array]]:
        tables, kind, mask, x = self.embeddings, self.variant.kind, self.mask(tokens), words
        if kind.segments:
            x = x + tables["token_type_embeddings"](segments if kind.segments > 1 else jnp.zeros_like(segments))
        places = jnp.arange(tokens.shape[1])[None]
        if kind.counts_on:
            places = jnp.where(mask, places + (kind.padding + 1), kind.padding)
        x = x + tables["position_embeddings"](places)
        shape = x.shape
        rows = dropout(tables["LayerNorm"](x.reshape(-1, shape[-1])), tokens.shape[0])
        yield "embeddings", rows.reshape(shape)
        for index, layer in enumerate(self.encoder["layer"]):
            rows = self.run_block(layer, rows, mask, dropout=dropout)
            yield f"encoder.layer.{index}", rows.reshape(shape)


def architecture(name: str, variant: Variant) -> Architecture:
    """Describes a network of transformers'."""
    depth = variant.depth
    return Architecture(
        name=name,
        family="bert",
        make=functools.partial(Bert, variant),
        head="classifier",
        channels=(variant.width,) * depth,
        strides=(1,) * depth,
        locate=located_by(
            [
                (r"embeddings\.", lambda match: (0, 0)),
                (r"encoder\.layer\.(\d+)\.", lambda match: (int(match[1]) + 1, 0)),
                (r"pooler\.", lambda match: (depth, 0)),  # with the last layer
            ]
        ),
        reference="transformers",
        module_path=variant.kind.module_path,
        rules=(Rule(r"(.+)\.embedding", variant.kind.name + r".\1.weight", (0, 1)),),
        texts=Texts(variant.vocabulary, variant.kind.padding, POSITIONS),
    )


UNCASED, CASED, MULTILINGUAL, BYTES = 30_522, 28_996, 119_547, 50_265
VARIANTS = {
    # Google's small ones (arXiv:1908.08962).
    "bert_tiny_uncased": Variant(UNCASED, 128, 2, 2),
    "bert_mini_uncased": Variant(UNCASED, 256, 4, 4),
    "bert_small_uncased": Variant(UNCASED, 512, 4, 8),
    "bert_medium_uncased": Variant(UNCASED, 512, 8, 8),
    "bert_base_uncased": Variant(UNCASED, 768, 12, 12),
    "bert_base_cased": Variant(CASED, 768, 12, 12),
    "bert_base_multilingual_cased": Variant(MULTILINGUAL, 768, 12, 12),
    "bert_large_uncased": Variant(UNCASED, 1024, 24, 16),
    "bert_large_cased": Variant(CASED, 1024, 24, 16),
    "roberta_base": Variant(BYTES, 768, 12, 12, kind=ROBERTA),
    "roberta_large": Variant(BYTES, 1024, 24, 16, kind=ROBERTA),
    "distilroberta_base": Variant(BYTES, 768, 6, 12, kind=ROBERTA),
    "xlm_roberta_base": Variant(250_002, 768, 12, 12, kind=ROBERTA),
    # arXiv:1910.01108.
    "distilbert_base_uncased": Variant(UNCASED, 768, 6, 12, kind=DISTILBERT),
    "distilbert_base_cased": Variant(CASED, 768, 6, 12, kind=DISTILBERT),
    "distilbert_base_multilingual_cased": Variant(MULTILINGUAL, 768, 6, 12, kind=DISTILBERT),
    # MiniLM (arXiv:2002.10957), as sentence-transformers fine-tuned it for sentence embeddings.
    "all_minilm_l6_v2": Variant(UNCASED, 384, 6, 12, pool="mean"),
    "all_minilm_l12_v2": Variant(UNCASED, 384, 12, 12, pool="mean"),
}
ARCHITECTURES = {name: architecture(name, variant) for name, variant in VARIANTS.items()}
