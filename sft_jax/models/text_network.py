"""What networks of texts have in common, whatever their layers are."""

from collections.abc import Iterator
from typing import Any

import jax

from sft_jax.models.architecture import Features
from sft_jax.models.block_network import BlockNetwork
from sft_jax.models.dropout import Dropout


class TextNetwork(BlockNetwork):
    """A network of tokens; subclasses add `embed`, `pool` and `_stages`.

    Attributes:
      padding: number of the padding token.
      dropout: its rate, where the subclass says, if there is a key.
      attention_dropout: the rate of attention weights, likewise.
      axis_name: the mapped axis over devices, of which dropout takes examples' places in the global batch.
      classifier: the head.
    """

    padding: int
    dropout: float
    attention_dropout: float
    axis_name: str | None
    classifier: Any

    def features(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        *,
        words: jax.Array | None = None,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> Features:
        """Maps tokens int32 [batch, length], padded at the end, and their segments to `Features`.

        `words` are the tokens' embeddings [batch, length, width], if they are not those of `embed`.
        """
        dropout = Dropout(self.dropout, key, self.axis_name, attention=self.attention_dropout)
        stages = self._stages(tokens, segments, self.embed(tokens) if words is None else words, dropout)
        maps = tuple(activations for _, activations in stages)[1:]
        return Features(dropout(self.pool(maps[-1], self.mask(tokens)), tokens.shape[0]), maps)

    def head(self, features: jax.Array) -> jax.Array:
        """Maps features [batch, width] to logits [batch, num_classes]."""
        return self.classifier(features)

    def stages(self, tokens: jax.Array, segments: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields (name, activations [batch, length, width]) after the embeddings and after every layer."""
        return self._stages(tokens, segments, self.embed(tokens), Dropout(0.0, None, None))

    def mask(self, tokens: jax.Array) -> jax.Array:
        """Returns which tokens are no padding, bool [batch, length]."""
        return tokens != self.padding

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Returns the embeddings of tokens int32 [batch, length], before anything else: [batch, length, width]."""
        raise NotImplementedError

    def pool(self, last: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps the last of `Features.maps` [batch, length, width] and the mask [batch, length] to `Features.pooled`."""
        raise NotImplementedError

    def _stages(
        self, tokens: jax.Array, segments: jax.Array, words: jax.Array, dropout: Dropout
    ) -> Iterator[tuple[str, jax.Array]]:
        raise NotImplementedError
