"""ModernBERT (Warner et al., 2024, arXiv:2412.13663).

Attribute paths are the keys of transformers' `ModernBertModel`, and `pooler` has what transformers calls `head`: the
layer before the classifier. Only the leaves have JAX's names.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from sft_jax import ops
from sft_jax.models.architecture import Architecture, Rule, Texts, located_by
from sft_jax.models.dropout import Dropout
from sft_jax.models.layers import Linear
from sft_jax.models.rotary import Rotation, rotated, text_rotation
from sft_jax.models.text_network import TextNetwork
from sft_jax.models.transformer import DEVIATION, Dense, Embedding, LayerNorm, mean_of_tokens

# The longest text in tokens.
POSITIONS = 8192
# In the first of so many layers, tokens attend to the whole text; in the others, to a window of it.
GLOBAL_EVERY = 3
# Of the rotations, see `text_rotation`.
GLOBAL_THETA, LOCAL_THETA = 160_000.0, 10_000.0
EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Variant:
    """What distinguishes the networks.

    Attributes:
      width: channels of a token.
      depth: number of layers.
      heads: number of attention heads.
      hidden: channels within the MLP, after gating.
      pool: what the layer before the classifier sees: the mean of the tokens, or the first one ("cls").
      window: number of tokens before and after a token to which it attends in local layers.
      vocabulary: number of kinds of tokens.
      padding: number of the padding token.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    pool: Literal["mean", "cls"] = "mean"
    window: int = 64
    vocabulary: int = 50_368
    padding: int = 50_283

    def is_global(self, layer: int) -> bool:
        """Returns whether the tokens of a layer, counted from 0, attend to the whole text."""
        return layer % GLOBAL_EVERY == 0


class Layer(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): transformers' `ModernBertEncoderLayer`.

    Args:
      variant: see `Variant`.
      index: number of the layer; the first has no norm before its attention.
      dtype: of the operands of matrix products.
    """

    def __init__(self, variant: Variant, index: int, *, dtype, rngs: nnx.Rngs):
        def dense(inputs: int, outputs: int, deviation: float = DEVIATION) -> Dense:
            return Dense(inputs, outputs, bias=False, deviation=deviation, dtype=dtype, rngs=rngs)

        width, hidden, small = variant.width, variant.hidden, output_deviation(variant)
        self.heads, self.window = variant.heads, None if variant.is_global(index) else variant.window
        self.attn_norm = norm(variant) if index else None
        self.attn = nnx.Dict({"Wqkv": dense(width, 3 * width), "Wo": dense(width, width, small)})
        self.mlp_norm = norm(variant)
        self.mlp = nnx.Dict({"Wi": dense(width, 2 * hidden), "Wo": dense(hidden, width, small)})

    def __call__(self, x: jax.Array, mask: jax.Array, rotation: Rotation, *, dropout: Dropout) -> jax.Array:
        """Maps rows x [batch * tokens, width], float32 or wider, to the same; mask is bool [batch, tokens]."""
        batch, tokens = mask.shape
        qkv = self.attn["Wqkv"](x if self.attn_norm is None else self.attn_norm(x))
        qkv = rotated(qkv, tokens, self.heads, rotation)
        drop = dropout.of_attention(batch)
        mixed = ops.self_attention(qkv, tokens, self.heads, mask=mask, window=self.window, drop=drop)
        x = x + self.attn["Wo"](mixed).astype(x.dtype)
        signal, gate = jnp.split(self.mlp["Wi"](self.mlp_norm(x)), 2, axis=-1)
        return x + self.mlp["Wo"](dropout(ops.gelu(signal) * gate, batch)).astype(x.dtype)


def norm(variant: Variant) -> LayerNorm:
    """Makes one of the norms, which have no bias."""
    return LayerNorm(variant.width, epsilon=EPSILON, bias=False)


def output_deviation(variant: Variant) -> float:
    """Returns the deviation of new kernels at the ends of branches and before the classifier, as in transformers."""
    return DEVIATION * (2 * variant.depth) ** -0.5


class ModernBert(TextNetwork):
    """transformers' `ModernBertForSequenceClassification`.

    Args:
      variant: see `Variant`.
      num_classes: number of outputs.
      stem: unused; there is only one.
      dtype: of the operands of matrix products; the residual stream is float32 or wider.
      axis_name: the mapped axis over devices, of which dropout takes examples' places in the global batch.
      stochastic_depth: unused.
      dropout: rate after the embeddings, of the gated channels of every MLP and of the classifier's inputs, if there is
        a key: transformers' `embedding_dropout`, `mlp_dropout` and `classifier_dropout`, which all are 0 by default.
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
        self.variant, width = variant, variant.width
        self.padding, self.axis_name = variant.padding, axis_name
        self.dropout, self.attention_dropout = dropout, attention_dropout
        tokens = Embedding(variant.vocabulary, width, rngs=rngs)
        self.embeddings: Any = nnx.Dict({"tok_embeddings": tokens, "norm": norm(variant)})
        self.layers = nnx.List([Layer(variant, index, dtype=dtype, rngs=rngs) for index in range(variant.depth)])
        self.final_norm = norm(variant)
        small = output_deviation(variant)
        dense = Dense(width, width, bias=False, deviation=small, dtype=dtype, rngs=rngs)
        self.pooler: Any = nnx.Dict({"dense": dense, "norm": norm(variant)})
        self.classifier = Linear(width, num_classes, rngs=rngs)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """See `TextNetwork`; before their norm."""
        return self.embeddings["tok_embeddings"](tokens)

    def pool(self, last: jax.Array, mask: jax.Array) -> jax.Array:
        """See `TextNetwork`."""
        states = self.final_norm(last.reshape(-1, last.shape[-1])).reshape(last.shape)
        pooled = states[:, 0] if self.variant.pool == "cls" else mean_of_tokens(states, mask)
        return self.pooler["norm"](ops.gelu(self.pooler["dense"](pooled).astype(last.dtype)))

    def _stages(
        self, tokens: jax.Array, segments: jax.Array, words: jax.Array, dropout: Dropout
    ) -> Iterator[tuple[str, jax.Array]]:
        mask, shape = self.mask(tokens), words.shape  # it has no segments
        rows = dropout(self.embeddings["norm"](words.reshape(-1, shape[-1])), shape[0])
        yield "embeddings", rows.reshape(shape)
        d = self.variant.width // self.variant.heads
        turns = {
            is_global: text_rotation(shape[1], d, theta, rows.dtype)
            for is_global, theta in ((True, GLOBAL_THETA), (False, LOCAL_THETA))
        }
        for index, layer in enumerate(self.layers):
            rows = self.run_block(layer, rows, mask, turns[self.variant.is_global(index)], dropout=dropout)
            yield f"layers.{index}", rows.reshape(shape)


def _module_path(path: str) -> str:
    """Returns transformers' path of one of our modules."""
    if path.startswith("pooler."):
        return path.replace("pooler.", "head.", 1)
    return path if path == "classifier" else f"model.{path}"


def architecture(name: str, variant: Variant) -> Architecture:
    """Describes a network of transformers'."""
    depth = variant.depth
    return Architecture(
        name=name,
        family="modernbert",
        make=functools.partial(ModernBert, variant),
        head="classifier",
        channels=(variant.width,) * depth,
        strides=(1,) * depth,
        locate=located_by(
            [
                (r"embeddings\.", lambda match: (0, 0)),
                (r"layers\.(\d+)\.", lambda match: (int(match[1]) + 1, 0)),
                (r"(final_norm|pooler)\.", lambda match: (depth, 0)),  # with the last layer
            ]
        ),
        reference="transformers",
        module_path=_module_path,
        rules=(Rule(r"(.+)\.embedding", r"model.\1.weight", (0, 1)),),
        texts=Texts(variant.vocabulary, variant.padding, POSITIONS),
    )


# Ends the names of networks whose classifier sees the first token; those of answerdotai see the mean.
CLS = "_cls"
_PUBLISHED = {
    "modernbert_base": Variant(768, 22, 12, 1152),
    "modernbert_large": Variant(1024, 28, 16, 2624),
}
VARIANTS = _PUBLISHED | {
    f"{name}{CLS}": dataclasses.replace(variant, pool="cls") for name, variant in _PUBLISHED.items()
}
ARCHITECTURES = {name: architecture(name, variant) for name, variant in VARIANTS.items()}
