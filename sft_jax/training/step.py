"""One training step and one evaluation step: pure functions of arrays, the same for jit, pmap and tests."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sft_jax.data.mixup import Mixture, mix
from sft_jax.models import Functional, Head
from sft_jax.ops.collectives import all_mean, all_sum
from sft_jax.tasks.classification import EvalSums, eval_sums
from sft_jax.tasks.losses import cross_entropy, weight_scale
from sft_jax.training.state import Arrays, TrainState

Network = Functional | Head

# Of the random numbers of an update.
MIXTURE, SKIPS = 0, 1


class StepMetrics(NamedTuple):
    """Of one training batch, over all devices: mean loss (float32) and number of correct predictions (int32)."""

    loss: jax.Array
    correct: jax.Array


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What a training step does besides following the gradient of the cross-entropy. The default is the plain step.

    Attributes:
      trained: names of the parameters that are trained, None for all. The others cost no gradient and no update.
      batch_statistics: whether batch norm uses the statistics of the batch, and keeps their running mean.
      label_smoothing, mixup, cutmix: see `regularize`.
      class_weights: of the loss, one for each class; None where all count alike.
      l2_sp: L2-SP (Li et al., 2018, arXiv:1802.01483): l2_sp * (weight - anchor) is added to the gradient.
      sam_rho: sharpness-aware minimisation (Foret et al., 2021, arXiv:2010.01412): the gradient is taken where a step
        of this length uphill leads.
      ema: decay of the moving averages, which warms up as (1 + steps) / (10 + steps); 0 for none.
      ema_start: the step at which they begin.
      accumulate: parts in which a batch is computed, one after the other. Batch norm sees each part by itself.
    """

    trained: frozenset[str] | None = None
    batch_statistics: bool = True
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    class_weights: tuple[float, ...] | None = None
    l2_sp: float = 0.0
    sam_rho: float = 0.0
    ema: float = 0.0
    ema_start: int = 0
    accumulate: int = 1


def make_train_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    axis_name: str | None = None,
    settings: StepSettings = StepSettings(),
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """The update (state, images [batch, height, width, 3] normalised, labels [batch], key) -> (state, metrics).

    Inside a mapped axis `axis_name` each device gets an equal share of the batch, and all compute the same new state.
    The key may be left out where nothing is random: without mixtures and stochastic depth.
    """

    def train_step(state: TrainState, images: jax.Array, labels: jax.Array, key: jax.Array | None = None):
        trained = {key: leaf for key, leaf in state.params.items() if _is_trained(key, settings)}
        batch = Mixture(images, labels, labels, jnp.ones((), jnp.float32))
        skip_key = None
        if key is not None:
            mix_key, skip_key = (jax.random.fold_in(key, purpose) for purpose in (MIXTURE, SKIPS))
            if settings.mixup or settings.cutmix:
                batch = mix(images, labels, mix_key, mixup=settings.mixup, cutmix=settings.cutmix, axis_name=axis_name)
        weights = None if settings.class_weights is None else jnp.asarray(settings.class_weights, jnp.float32)
        # Partners are the same labels in another order: one scale serves both.
        scale = None if weights is None else weight_scale(weights, labels, axis_name)

        def mean_loss(trained, batch_stats, part: Mixture, key):
            logits, batch_stats = network.apply(
                state.params | trained, batch_stats, part.images, train=settings.batch_statistics, key=key
            )
            if settings.mixup or settings.cutmix:
                loss = _mixed_loss(part, logits, settings.label_smoothing, weights)
            else:
                loss = cross_entropy(logits, part.labels, settings.label_smoothing, weights)
            if scale is not None:
                loss = scale.astype(loss.dtype) * loss
            correct = (logits.argmax(-1) == part.main_labels()).sum(dtype=jnp.int32)
            return loss.mean(), (correct, batch_stats)

        def gradients_at(trained):
            return _accumulated(
                jax.value_and_grad(mean_loss, has_aux=True), trained, state.batch_stats, batch, skip_key, settings
            )

        (loss, (correct, batch_stats)), gradients = gradients_at(trained)
        loss, gradients = all_mean((loss, gradients), axis_name)
        if settings.sam_rho:
            length = settings.sam_rho / (optax.tree.norm(gradients) + 1e-12)
            uphill = jax.tree.map(lambda weight, slope: weight + length * slope, trained, gradients)
            gradients = all_mean(gradients_at(uphill)[1], axis_name)
        for name, anchor in state.anchor.items():
            if name in gradients:
                gradients[name] += settings.l2_sp * (trained[name] - anchor)
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        params = state.params | optax.apply_updates(trained, updates)
        averages = _averaged(state.ema, {**params, **batch_stats}, state.step, settings)
        new_state = TrainState(state.step + 1, params, batch_stats, opt_state, averages, state.anchor)
        return new_state, StepMetrics(loss, all_sum(correct, axis_name))

    return train_step


def _mixed_loss(part: Mixture, logits: jax.Array, smoothing: float, weights: jax.Array | None) -> jax.Array:
    """Per image [batch]: the share of `cross_entropy` of each of the labels."""
    own, other = (cross_entropy(logits, labels, smoothing, weights) for labels in (part.labels, part.partners))
    share = part.share.astype(logits.dtype)
    return share * own + (1 - share) * other


def _is_trained(name: str, settings: StepSettings) -> bool:
    return settings.trained is None or name in settings.trained


def _accumulated(value_and_gradient: Callable, trained, batch_stats, batch: Mixture, key, settings: StepSettings):
    """The mean loss and gradient over the parts of `batch`, the correct predictions of all, the last statistics."""
    parts = settings.accumulate
    if parts == 1:
        return value_and_gradient(trained, batch_stats, batch, key)
    batched = {name: getattr(batch, name) for name in ("images", "labels", "partners")}
    cut = {name: rows.reshape(parts, len(rows) // parts, *rows.shape[1:]) for name, rows in batched.items()}

    def add_part(sums, numbered):
        (loss, (correct, batch_stats)), gradients = sums
        index, rows = numbered
        part = Mixture(**rows, share=batch.share)
        own_key = None if key is None else jax.random.fold_in(key, index)
        (new_loss, (new_correct, batch_stats)), new = value_and_gradient(trained, batch_stats, part, own_key)
        gradients = jax.tree.map(lambda total, more: total + more / parts, gradients, new)
        return ((loss + new_loss / parts, (correct + new_correct, batch_stats)), gradients), None

    zero = jnp.zeros((), jnp.result_type(*trained.values()))
    start = ((zero, (jnp.zeros((), jnp.int32), batch_stats)), jax.tree.map(jnp.zeros_like, trained))
    return lax.scan(add_part, start, (jnp.arange(parts), cut))[0]


def _averaged(averages: Arrays, values: Arrays, step: jax.Array, settings: StepSettings) -> Arrays:
    if not averages:
        return averages
    steps = (step - settings.ema_start).astype(jnp.float32)
    rate = jnp.minimum(settings.ema, (1 + steps) / (10 + steps))
    return {name: rate * averages[name] + (1 - rate) * values[name] for name in averages}


def make_eval_step(network: Network, *, flips: bool = False) -> Callable[..., EvalSums]:
    """(params, batch_stats, images [batch, height, width, 3] normalised, labels, mask) -> the batch's `EvalSums`.

    With `flips` of the mean of the logits of each image and of its mirror image.
    """

    def eval_step(params, batch_stats, images: jax.Array, labels: jax.Array, mask: jax.Array) -> EvalSums:
        logits, _ = network.apply(params, batch_stats, images, train=False)
        if flips:
            logits = (logits + network.apply(params, batch_stats, images[:, :, ::-1], train=False)[0]) / 2
        return eval_sums(logits, labels, mask)

    return eval_step
