"""The training step and the evaluation step: pure functions of arrays, usable under jit, pmap or neither."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sft_jax.data.mixup import Mixture, mix
from sft_jax.models import HeadNetwork, Network
from sft_jax.models.precision import multiplying
from sft_jax.ops.collectives import all_mean, all_sum
from sft_jax.tasks.base import Batch, Task
from sft_jax.training.state import Arrays, TrainState

# Folded into the random key of an update, one per purpose.
MIXTURE, SKIPS = 0, 1


class StepMetrics(NamedTuple):
    """Metrics of a training batch over all devices: the mean loss, float32, and the sums of `Task.train_sums`."""

    loss: jax.Array
    sums: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """Options of the training step. With the defaults it only follows the gradient of the task's loss.

    Attributes:
      trained: names of the trained parameters, None for all. Gradients and updates of others are not computed.
      batch_statistics: whether batch norm uses batch statistics and updates the running ones.
      mixup, cutmix: see `mix`.
      l2_sp: L2-SP (Li et al., 2018, arXiv:1802.01483): l2_sp * (weight - anchor) is added to the gradient.
      sam_rho: sharpness-aware minimisation (Foret et al., 2021, arXiv:2010.01412): length of the ascent step after
        which the gradient is taken.
      ema: decay of the moving averages, which warms up as (1 + steps) / (10 + steps); 0 for none.
      ema_start: the step at which they begin.
      accumulate: micro-batches per batch, computed sequentially. Batch norm sees one micro-batch at a time.
    """

    trained: frozenset[str] | None = None
    batch_statistics: bool = True
    mixup: float = 0.0
    cutmix: float = 0.0
    l2_sp: float = 0.0
    sam_rho: float = 0.0
    ema: float = 0.0
    ema_start: int = 0
    accumulate: int = 1


def make_train_step(
    network: Network | HeadNetwork,
    task: Task,
    optimizer: optax.GradientTransformation,
    axis_name: str | None = None,
    settings: StepSettings = StepSettings(),
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """Makes the update (state, batch, key) -> (state, metrics) for a batch returned by `Task.augment`.

    Inside a mapped axis `axis_name` each device gets an equal part of the batch, and all compute the same new state.
    The key is optional without mixup, CutMix and stochastic depth.
    """
    mixes = bool(settings.mixup or settings.cutmix)

    def train_step(state: TrainState, batch: Batch, key: jax.Array | None = None):
        trained = {key: leaf for key, leaf in state.params.items() if _is_trained(key, settings)}
        mixture = Mixture(batch, {}, jnp.ones((), jnp.float32))
        skip_key = None
        if key is not None:
            mix_key, skip_key = (jax.random.fold_in(key, purpose) for purpose in (MIXTURE, SKIPS))
            if mixes:
                mixture = mix(
                    batch,
                    mix_key,
                    targets=task.targets,
                    mixup=settings.mixup,
                    cutmix=settings.cutmix,
                    axis_name=axis_name,
                )
        # The partners are the same targets in another order, so that the scale is the same.
        scale = task.loss_scale(batch, axis_name)

        def mean_loss(trained, batch_stats, part: Mixture, key):
            inputs = (part.batch[name] for name in network.inputs)
            outputs, batch_stats = network.apply(
                state.params | trained, batch_stats, *inputs, train=settings.batch_statistics, key=key
            )
            loss = task.loss(outputs, part.batch)
            if mixes:
                lam = part.lam.astype(outputs.dtype)
                loss = lam * loss + (1 - lam) * task.loss(outputs, part.batch | part.partners)
            if scale is not None:
                loss = scale.astype(loss.dtype) * loss
            return loss.mean(), (task.train_sums(outputs, part.batch | part.main_targets()), batch_stats)

        def gradients_at(trained):
            value_and_gradient = jax.value_and_grad(mean_loss, has_aux=True)
            with multiplying(network.products):
                return _accumulated(value_and_gradient, trained, state.batch_stats, mixture, skip_key, settings)

        (loss, (sums, batch_stats)), gradients = gradients_at(trained)
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
        return new_state, StepMetrics(loss, all_sum(sums, axis_name))

    return train_step


def _is_trained(name: str, settings: StepSettings) -> bool:
    return settings.trained is None or name in settings.trained


class _Accumulated(NamedTuple):
    """Results accumulated over micro-batches: mean loss and gradient, the task's sums, and the latest statistics."""

    loss: jax.Array
    sums: dict[str, jax.Array]
    batch_stats: Arrays
    gradients: Arrays


def _accumulated(value_and_gradient: Callable, trained, batch_stats, mixture: Mixture, key, settings: StepSettings):
    """Computes ((loss, (sums, batch statistics)), gradients) of the whole batch, one micro-batch after the other."""
    parts = settings.accumulate
    if parts == 1:
        return value_and_gradient(trained, batch_stats, mixture, key)

    def cut(batch: Batch) -> Batch:
        return {name: rows.reshape(parts, len(rows) // parts, *rows.shape[1:]) for name, rows in batch.items()}

    @functools.partial(jax.jit, inline=True)  # traced once for both eval_shape and the loop
    def compute(batch_stats, index, batch: Batch, partners: Batch):
        own_key = None if key is None else jax.random.fold_in(key, index)
        return value_and_gradient(trained, batch_stats, Mixture(batch, partners, mixture.lam), own_key)

    def add_part(so_far: _Accumulated, numbered):
        (loss, (sums, batch_stats)), new = compute(so_far.batch_stats, *numbered)
        gradients = jax.tree.map(lambda total, more: total + more / parts, so_far.gradients, new)
        sums = jax.tree.map(jnp.add, so_far.sums, sums)
        return _Accumulated(so_far.loss + loss / parts, sums, batch_stats, gradients), None

    numbered = (jnp.arange(parts), cut(mixture.batch), cut(mixture.partners))
    (_, (like, _)), _ = jax.eval_shape(compute, batch_stats, *jax.tree.map(lambda rows: rows[0], numbered))
    zero = jnp.zeros((), jnp.result_type(*trained.values()))
    no_sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    start = _Accumulated(zero, no_sums, batch_stats, jax.tree.map(jnp.zeros_like, trained))
    whole = lax.scan(add_part, start, numbered)[0]
    return (whole.loss, (whole.sums, whole.batch_stats)), whole.gradients


def _averaged(averages: Arrays, values: Arrays, step: jax.Array, settings: StepSettings) -> Arrays:
    if not averages:
        return averages
    steps = (step - settings.ema_start).astype(jnp.float32)
    rate = jnp.minimum(settings.ema, (1 + steps) / (10 + steps))
    return {name: rate * averages[name] + (1 - rate) * values[name] for name in averages}


def make_outputs(network: Network | HeadNetwork) -> Callable[..., jax.Array]:
    """Makes the function (params, batch_stats, views) -> outputs [n, ...].

    The views are those that `Task.views` returns of one batch; the outputs are averaged over them.
    """

    def outputs(params, batch_stats, views: Sequence[Batch]) -> jax.Array:
        def of(batch: Batch) -> jax.Array:
            inputs = (batch[name] for name in network.inputs)
            return network.apply(params, batch_stats, *inputs, train=False)[0]

        predicted = functools.reduce(jnp.add, map(of, views))
        return predicted / len(views) if len(views) > 1 else predicted

    return outputs


def make_eval_step(network: Network | HeadNetwork, task: Task) -> Callable[..., Any]:
    """Makes the function (params, batch_stats, views, mask) -> `Task.sums` of `make_outputs`."""
    outputs = make_outputs(network)

    def eval_step(params, batch_stats, views: Sequence[Batch], mask: jax.Array) -> Any:
        return task.sums(outputs(params, batch_stats, views), views[0], mask)

    return eval_step
