"""Losses of single examples."""

import jax
import jax.numpy as jnp
import optax

from sft_jax.config.traced import is_on
from sft_jax.ops.collectives import all_mean


def cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float | jax.Array = 0.0, weights: jax.Array | None = None
) -> jax.Array:
    """Of logits [batch, classes] against labels int [batch], per image [batch].

    `torch.nn.CrossEntropyLoss(weight=weights, label_smoothing=smoothing, reduction="none")`: that share of the target
    is spread over all classes (Szegedy et al., 2016, arXiv:1512.00567), and each class's part of the sum is multiplied
    by its weight, of weights [classes]. For torch's mean see `weight_scale`.
    """
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if weights is not None:
        weights = weights.astype(logits.dtype)
        loss = weights[labels] * loss
    if not is_on(smoothing):
        return loss
    smoothing = jnp.asarray(smoothing, loss.dtype) if isinstance(smoothing, jax.Array) else smoothing
    if weights is None:
        uniform = jax.nn.logsumexp(logits, axis=-1) - logits.mean(-1)
    else:
        uniform = -(jax.nn.log_softmax(logits) * weights[None]).mean(-1)
    return (1 - smoothing) * loss + smoothing * uniform


def weight_scale(weights: jax.Array, labels: jax.Array, axis_name: str | None = None) -> jax.Array:
    """What makes a plain mean of weighted losses torch's mean, which divides by the weights of the labels, not by their
    number: the scale [] for the whole batch with labels [share of the batch] on each device of `axis_name`.

    A batch with no weight at all has a loss of 0.
    """
    mean = all_mean(weights[labels].mean(), axis_name)
    return jnp.where(mean > 0, 1 / jnp.where(mean > 0, mean, 1.0), 0.0)
