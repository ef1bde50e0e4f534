"""BERT (Devlin et al., 2018, arXiv:1810.04805), as in transformers, and its distilled small versions.

Attribute paths are the keys of transformers' `BertModel`; only the leaves have JAX's names.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from sft_jax import ops
from sft_jax.models.architecture import Architecture, Features, Rule, Text, located_by
from sft_jax.models.block_network import BlockNetwork
from sft_jax.models.layers import Linear
from sft_jax.models.transformer import DEVIATION, Dense, LayerNorm

EPSILON = 1e-12
# The longest text in tokens, and the kinds of segments: the first text, and the second of a pair.
POSITIONS, SEGMENTS = 512, 2


@dataclasses.dataclass(frozen=True)
class Variant:
    """What distinguishes the networks.

    Attributes:
      vocabulary: number of kinds of tokens.
      width: channels of a token; the MLP has four times as many.
      depth: number of layers.
      heads: number of attention heads.
      pool: whether the head sees the first token after a layer with tanh ("pooler"), or the mean of the tokens.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    pool: Literal["pooler", "mean"] = "pooler"


class Embedding(nnx.Module):
    """`torch.nn.Embedding`: embedding [kinds, channels]."""

    def __init__(self, kinds: int, channels: int, *, rngs: nnx.Rngs):
        self.embedding = nnx.Param(DEVIATION * jax.random.normal(rngs.params(), (kinds, channels), jnp.float32))

    def __call__(self, numbers: jax.Array) -> jax.Array:
        """Maps integers [...] to [..., channels]."""
        return self.embedding[...][numbers]


class Layer(nnx.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)): transformers' `BertLayer`."""

    def __init__(self, width: int, heads: int, *, dtype, rngs: nnx.Rngs):
        def dense(inputs: int, outputs: int) -> Dense:
            return Dense(inputs, outputs, dtype=dtype, rngs=rngs)

        def added(inputs: int) -> Any:
            return nnx.Dict({"dense": dense(inputs, width), "LayerNorm": LayerNorm(width, epsilon=EPSILON)})

        self.heads, self.dtype = heads, dtype
        own = nnx.Dict({name: dense(width, width) for name in ("query", "key", "value")})
        self.attention = nnx.Dict({"self": own, "output": added(width)})
        self.intermediate = nnx.Dict({"dense": dense(width, 4 * width)})
        self.output = added(4 * width)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps rows x [batch * tokens, width], float32 or wider, to the same; mask is bool [batch, tokens]."""
        parts = [self.attention["self"][name] for name in ("query", "key", "value")]
        kernel = jnp.concatenate([part.kernel[...] for part in parts], axis=1)
        bias = jnp.concatenate([part.bias[...] for part in parts])
        qkv = ops.dense(x.astype(self.dtype), kernel, bias)
        mixed = ops.self_attention(qkv, mask.shape[1], self.heads, mask=mask)
        x = _added(self.attention["output"], x, mixed)
        return _added(self.output, x, ops.gelu(self.intermediate["dense"](x)))


def _added(output: Any, x: jax.Array, branch: jax.Array) -> jax.Array:
    return output["LayerNorm"](x + output["dense"](branch).astype(x.dtype))


class Bert(BlockNetwork):
    """transformers' `BertForSequenceClassification` without dropout; or with the mean of all tokens for its pooler.

    Args:
      variant: see `Variant`.
      num_classes: number of outputs.
      stem: unused; there is only one.
      dtype: of the operands of matrix products; the residual stream is float32 or wider.
      axis_name: unused.
      stochastic_depth: unused.
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
        rngs: nnx.Rngs,
    ):
        self.variant, width = variant, variant.width
        kinds = {"word": variant.vocabulary, "position": POSITIONS, "token_type": SEGMENTS}
        tables: dict[str, Any] = {f"{name}_embeddings": Embedding(n, width, rngs=rngs) for name, n in kinds.items()}
        self.embeddings = nnx.Dict(tables | {"LayerNorm": LayerNorm(width, epsilon=EPSILON)})
        layers = [Layer(width, variant.heads, dtype=dtype, rngs=rngs) for _ in range(variant.depth)]
        self.encoder = nnx.Dict({"layer": nnx.List(layers)})
        has_pooler = variant.pool == "pooler"
        self.pooler = nnx.Dict({"dense": Dense(width, width, dtype=dtype, rngs=rngs)}) if has_pooler else None
        self.classifier = Linear(width, num_classes, rngs=rngs)

    def features(
        self, tokens: jax.Array, segments: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> Features:
        """Maps tokens int32 [batch, length], 0 for padding, and their segments to `Features`."""
        maps = tuple(activations for _, activations in self.stages(tokens, segments))[1:]
        return Features(self.pool(maps[-1], tokens > 0), maps)

    def pool(self, last: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps the last of `Features.maps` [batch, length, width] and the mask [batch, length] to `Features.pooled`."""
        if self.pooler is not None:
            return jnp.tanh(self.pooler["dense"](last[:, 0]).astype(last.dtype))
        weights = mask[..., None].astype(last.dtype)
        return (last * weights).sum(1) / jnp.maximum(weights.sum(1), 1)

    def head(self, features: jax.Array) -> jax.Array:
        """Maps features [batch, width] to logits [batch, num_classes]."""
        return self.classifier(features)

    def stages(self, tokens: jax.Array, segments: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields (name, activations [batch, length, width]) after the embeddings and after every layer."""
        tables, length, mask = self.embeddings, tokens.shape[1], tokens > 0
        x = tables["word_embeddings"](tokens) + tables["token_type_embeddings"](segments)
        x = x + tables["position_embeddings"](jnp.arange(length))[None]
        shape, rows = x.shape, tables["LayerNorm"](x.reshape(-1, x.shape[-1]))
        yield "embeddings", rows.reshape(shape)
        for index, layer in enumerate(self.encoder["layer"]):
            rows = self.run_block(layer, rows, mask)
            yield f"encoder.layer.{index}", rows.reshape(shape)


def _module_path(path: str) -> str:
    """Returns the path of a module in `BertForSequenceClassification`."""
    return path if path == "classifier" else f"bert.{path}"


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
        module_path=_module_path,
        rules=(Rule(r"(.+)\.embedding", r"bert.\1.weight", (0, 1)),),
        text=Text(variant.vocabulary, POSITIONS),
    )


UNCASED, CASED, MULTILINGUAL = 30_522, 28_996, 119_547
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
    # MiniLM (arXiv:2002.10957), as sentence-transformers fine-tuned it for sentence embeddings.
    "all_minilm_l6_v2": Variant(UNCASED, 384, 6, 12, pool="mean"),
    "all_minilm_l12_v2": Variant(UNCASED, 384, 12, 12, pool="mean"),
}
ARCHITECTURES = {name: architecture(name, variant) for name, variant in VARIANTS.items()}
