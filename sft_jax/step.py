"""One training step and one evaluation step: pure functions of arrays, the same for jit, pmap and tests."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sft_jax.models import Functional
from sft_jax.ops.collectives import all_mean, all_sum
from sft_jax.state import TrainState

CALIBRATION_BINS = 15


class StepMetrics(NamedTuple):
    """Of one training batch, over all devices: mean loss (float32) and number of correct predictions (int32)."""

    loss: jax.Array
    correct: jax.Array


class EvalSums(NamedTuple):
    """Sums over evaluated images, which add up exactly over batches and devices.

    Attributes:
      total: int32, images counted.
      loss: float32, sum of cross-entropies.
      correct: int32, predictions equal to the label.
      top5: int32, labels among the five highest logits (all of them where there are fewer classes).
      confusion: int32 [classes, classes], rows are the truth.
      calibration: float32 [3, CALIBRATION_BINS], per confidence bin: images, sum of confidences, correct ones
        (Guo et al., 2017, arXiv:1706.04599).
    """

    total: jax.Array
    loss: jax.Array
    correct: jax.Array
    top5: jax.Array
    confusion: jax.Array
    calibration: jax.Array


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Of logits [batch, classes] against labels int [batch], per image [batch]; `torch.nn.CrossEntropyLoss`."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def make_train_step(
    network: Functional, optimizer: optax.GradientTransformation, axis_name: str | None = None
) -> Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, StepMetrics]]:
    """The update (state, images [batch, height, width, 3] normalised, labels [batch]) -> (state, metrics).

    Inside a mapped axis `axis_name` each device gets an equal share of the batch, and all compute the same new state.
    """

    def train_step(state: TrainState, images: jax.Array, labels: jax.Array) -> tuple[TrainState, StepMetrics]:
        def mean_loss(params):
            logits, batch_stats = network.apply(params, state.batch_stats, images, train=True)
            return cross_entropy(logits, labels).mean(), (logits, batch_stats)

        (loss, (logits, batch_stats)), gradients = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        loss, gradients = all_mean((loss, gradients), axis_name)
        correct = all_sum((logits.argmax(-1) == labels).sum(dtype=jnp.int32), axis_name)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new_state = TrainState(state.step + 1, params, batch_stats, opt_state)
        return new_state, StepMetrics(loss, correct)

    return train_step


def zero_sums(classes: int) -> EvalSums:
    """The sums before the first image."""
    zero = jnp.zeros((), jnp.int32)
    bins = jnp.zeros((3, CALIBRATION_BINS), jnp.float32)
    return EvalSums(zero, jnp.zeros((), jnp.float32), zero, zero, jnp.zeros((classes, classes), jnp.int32), bins)


def eval_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> EvalSums:
    """The sums of one batch: logits [batch, classes], labels int [batch], mask bool [batch].

    Masked-out rows are left out by selection, not by a product: 0 * NaN is NaN.
    """
    classes = logits.shape[-1]
    logits = logits.astype(jnp.float32)
    prediction = logits.argmax(-1)
    hit = mask & (prediction == labels)
    # A label's rank counts the classes it does not beat; ties go to the earlier class, as in argmax. NaN beats nothing.
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    not_earlier = jnp.arange(classes)[None, :] >= labels[:, None]
    rank = classes - ((own > logits) | ((own == logits) & not_earlier)).sum(-1)
    confidence = jax.nn.softmax(logits).max(-1)
    bins = jnp.clip((confidence * CALIBRATION_BINS).astype(jnp.int32), 0, CALIBRATION_BINS - 1)
    counted = mask.astype(jnp.float32)
    per_image = jnp.stack([counted, jnp.where(mask, confidence, 0.0), hit.astype(jnp.float32)])
    return EvalSums(
        total=mask.sum(dtype=jnp.int32),
        loss=jnp.where(mask, cross_entropy(logits, labels), 0.0).sum(),
        correct=hit.sum(dtype=jnp.int32),
        top5=(mask & (rank < 5)).sum(dtype=jnp.int32),
        confusion=jnp.zeros((classes, classes), jnp.int32).at[labels, prediction].add(mask.astype(jnp.int32)),
        calibration=jnp.zeros((3, CALIBRATION_BINS), jnp.float32).at[:, bins].add(per_image),
    )


def make_eval_step(network: Functional) -> Callable[..., EvalSums]:
    """(params, batch_stats, images [batch, height, width, 3] normalised, labels, mask) -> the batch's `EvalSums`."""

    def eval_step(params, batch_stats, images: jax.Array, labels: jax.Array, mask: jax.Array) -> EvalSums:
        logits, _ = network.apply(params, batch_stats, images, train=False)
        return eval_sums(logits, labels, mask)

    return eval_step
