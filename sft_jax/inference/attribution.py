"""What the tokens of a text contribute to an output of the network: integrated gradients."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

METHOD = "integrated gradients"
# Points on the way from the baseline to the text.
STEPS = 32


@nnx.jit
def attributions(
    model: Any, tokens: jax.Array, segments: jax.Array, baseline: jax.Array, outputs: jax.Array
) -> jax.Array:
    """Computes integrated gradients (Sundararajan et al., 2017, arXiv:1703.01365) along the tokens' embeddings.

    The sum over a text's tokens is the logit's difference between the text and the baseline, up to the error of the
    integral (of the midpoint rule with `STEPS` points).

    Args:
      model: an NNX network of texts.
      tokens: int32 [n, length].
      segments: uint8 [n, length].
      baseline: int32 [n, length], a text without content: special tokens as in `tokens`, padding for the others.
      outputs: int [n], the output to explain.

    Returns:
      float32 [n, length].
    """
    start, end = model.embed(baseline), model.embed(tokens)

    def logit(words: jax.Array) -> jax.Array:
        pooled = model.features(tokens, segments, words=words).pooled
        return jnp.take_along_axis(model.head(pooled), outputs[:, None], axis=-1).sum()

    def add(step: jax.Array, total: jax.Array) -> jax.Array:
        share = (step + 0.5) / STEPS
        return total + jax.grad(logit)(start + share * (end - start))

    mean = lax.fori_loop(0, STEPS, add, jnp.zeros_like(end)) / STEPS
    return ((end - start) * mean).sum(-1).astype(jnp.float32)
