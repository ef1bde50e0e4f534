"""Per-example losses."""

import jax
import jax.numpy as jnp
import optax

from sft_jax.config.traced import is_on
from sft_jax.ops.collectives import all_mean


def cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float | jax.Array = 0.0, weights: jax.Array | None = None
) -> jax.Array:
    """Computes the cross-entropy of logits [batch, classes] and labels int [batch], per image: [batch].

    It is `torch.nn.CrossEntropyLoss(weight=weights, label_smoothing=smoothing, reduction="none")`: a fraction
    `smoothing` of the target is spread over all classes (Szegedy et al., 2016, arXiv:1512.00567), and each class's term
    is multiplied by its weight, from weights [classes]. See `weight_scale` for torch's mean.
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
    """Computes the factor [] that turns the plain mean of weighted losses into torch's mean.

    torch divides by the sum of the labels' weights instead of their number. `labels` [local batch] are those of one
    device of `axis_name`; the factor is for the global batch. It is 0 if all weights in the batch are 0.
    """
    mean = all_mean(weights[labels].mean(), axis_name)
    return jnp.where(mean > 0, 1 / jnp.where(mean > 0, mean, 1.0), 0.0)
