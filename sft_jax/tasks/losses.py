"""Per-example losses."""

import jax
import jax.numpy as jnp
import optax

from sft_jax.config.traced import is_on
from sft_jax.ops.collectives import all_mean


def cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float | jax.Array = 0.0, weights: jax.Array | None = None
) -> jax.Array:
    """Computes the cross-entropy of logits [..., classes] and labels int [...], per image or per pixel: [...].

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
        uniform = -(jax.nn.log_softmax(logits) * jnp.broadcast_to(weights, logits.shape)).mean(-1)
    return (1 - smoothing) * loss + smoothing * uniform


def weight_scale(weights: jax.Array, labels: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Computes the factor [] that turns the plain mean of weighted losses into torch's mean.

    torch divides by the sum of the labels' weights instead of their number. `labels` [local batch] are those of one
    device of `axis_name`; the factor is for the global batch. It is 0 if all weights in the batch are 0.
    """
    return inverse_mean(weights[labels], axis_name)


def inverse_mean(weights: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Computes 1 / the mean [] of weights of any shape over all devices of `axis_name`; 0 if all are 0."""
    mean = all_mean(weights.mean(), axis_name)
    return jnp.where(mean > 0, 1 / jnp.where(mean > 0, mean, 1.0), 0.0)


def dice(logits: jax.Array, labels: jax.Array, valid: jax.Array) -> jax.Array:
    """Computes 1 - Dice of images (Milletari et al., 2016, arXiv:1606.04797), float32 [n].

    Dice of a class is 2 sum(p t) / (sum(p) + sum(t)) over the image's valid pixels, where p is its probability and t is
    1 for its pixels. Of an image, it is the mean over the classes that the image has; 1 if it has none.

    Args:
      logits: [n, height, width, classes].
      labels: int [n, height, width].
      valid: bool [n, height, width], the pixels that count.
    """
    chances = jnp.where(valid[..., None], jax.nn.softmax(logits), 0)
    truth = jnp.where(valid[..., None], jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), 0)
    shared, wholes = (chances * truth).sum((1, 2)), (chances + truth).sum((1, 2))
    there = truth.any((1, 2))
    overlap = 2 * shared / jnp.where(there, wholes, 1)
    count = there.sum(-1).astype(logits.dtype)
    return jnp.where(count > 0, 1 - jnp.where(there, overlap, 0).sum(-1) / jnp.maximum(count, 1), 0)


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes torch's `binary_cross_entropy_with_logits` of logits and labels 0 or 1, elementwise."""
    return optax.sigmoid_binary_cross_entropy(logits, labels)


def focal(logits: jax.Array, labels: jax.Array, *, gamma: float, alpha: float | None) -> jax.Array:
    """Computes the focal loss (Lin et al., 2017, arXiv:1708.02002), elementwise, as torchvision's `sigmoid_focal_loss`.

    The cross-entropy is multiplied by (1 - p) ** gamma, where p is the probability of the right answer, and by `alpha`
    for labels 1 or 1 - `alpha` for 0; None: not by the latter.
    """
    right = jnp.where(labels == 1, jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits))
    loss = binary_cross_entropy(logits, labels) * _power(1 - right, gamma)
    return loss if alpha is None else loss * jnp.where(labels == 1, alpha, 1 - alpha)


def asymmetric(
    logits: jax.Array, labels: jax.Array, *, gamma_positive: float, gamma_negative: float, clip: float
) -> jax.Array:
    """Computes the asymmetric loss (Ridnik et al., 2021, arXiv:2009.14119), elementwise.

    It is a focal loss with a `gamma` each for labels 1 and 0, in which negatives with a probability of less than `clip`
    count as solved. timm's `AsymmetricLossMultiLabel` is its sum over labels.
    """
    positive = jax.nn.sigmoid(logits)
    negative = jnp.minimum(1 - positive + clip, 1.0)
    log_negative = jnp.log(negative) if clip else jax.nn.log_sigmoid(-logits)
    of_positives = _power(1 - positive, gamma_positive) * jax.nn.log_sigmoid(logits)
    of_negatives = _power(1 - negative, gamma_negative) * log_negative
    return -jnp.where(labels == 1, of_positives, of_negatives)


def _power(base: jax.Array, exponent: float) -> jax.Array:
    """Computes base ** exponent; the gradient of JAX's is NaN for 0 ** 0."""
    return base**exponent if exponent else jnp.ones_like(base)


def distance(errors: jax.Array, kind: str) -> jax.Array:
    """Computes the loss of errors, elementwise: "squared", "absolute", or "huber" (torch's `huber_loss`, delta 1)."""
    if kind == "huber":
        return optax.huber_loss(errors)
    return errors**2 if kind == "squared" else jnp.abs(errors)
