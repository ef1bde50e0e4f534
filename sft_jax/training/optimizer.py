"""Builds optax schedules and optimizers from `config.optimizer`, with per-parameter learning-rate multipliers."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from ml_collections import ConfigDict

from sft_jax.config.traced import is_on
from sft_jax.errors import UserError
from sft_jax.models import Architecture
from sft_jax.training.optimizer_arguments import OWN_KEYS, SGD_KEYS, checked_arguments

# Functions of optax that are not offered: they need more than the batch's gradient (the loss, its curvature, per-image
# gradients), take no schedule, are deprecated, or are covered by "sgd".
_LEFT_OUT = {"dpsgd", "lbfgs", "momo", "momo_adam", "noisy_sgd", "optimistic_adam", "rprop", "sgd", "sm3", "sophia"}


def make_schedule(
    config: ConfigDict, steps: int, *, peak: Any = None, steps_per_epoch: int = 1, batch_size: int = 1
) -> optax.Schedule:
    """Makes the learning-rate schedule over `steps` steps.

    Args:
      config: the group `optimizer` of the configuration.
      steps: total number of training steps.
      peak: replaces `learning_rate`.
      steps_per_epoch: converts `warmup_epochs` to steps.
      batch_size: batch size of the run, used if `reference_batch` is set.
    """
    peak = config.learning_rate if peak is None else peak
    if config.reference_batch is not None:
        peak *= batch_size / config.reference_batch  # Goyal et al., 2017, arXiv:1706.02677
    if config.schedule == "one_cycle":
        if config.warmup_epochs:
            raise UserError("optimizer.schedule=one_cycle has a built-in warmup; set optimizer.warmup_epochs=0")
        return optax.cosine_onecycle_schedule(steps, peak)
    warmup = min(round(config.warmup_epochs * steps_per_epoch), steps - 1)
    rest = steps - warmup
    if config.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(peak, rest)
    elif config.schedule == "linear":
        schedule = optax.linear_schedule(peak, 0.0, rest)
    elif config.schedule == "step":
        schedule = optax.piecewise_constant_schedule(peak, {max(1, rest // 3): 0.1, max(2, 2 * rest // 3): 0.1})
    else:
        schedule = optax.constant_schedule(peak)
    if not warmup:
        return schedule
    # Warmup starts above 0, so that the first step trains too, and reaches the peak after `warmup` steps.
    return optax.join_schedules([optax.linear_schedule(peak / (warmup + 1), peak, warmup), schedule], [warmup])


def make_optimizer(
    config: ConfigDict,
    schedule: optax.Schedule | int,
    *,
    architecture: Architecture,
    clip_norm: float | None = None,
    multipliers: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """Makes the optimizer that `config` names.

    "sgd" is `torch.optim.SGD`: weight decay is added to the gradient, before the momentum.

    v = momentum * v + (gradient + weight_decay * weight); weight -= learning_rate * v

    Args:
      config: the group `optimizer` of the configuration.
      schedule: learning rate as a function of the optimizer's step count, or the number of steps for `make_schedule`.
      architecture: says which parameters decay, and which are matrices for Muon.
      clip_norm: maximum global norm of the gradients.
      multipliers: learning-rate multipliers by parameter name; the default is 1.

    Raises:
      UserError: the optimizer does not exist, or does not accept these arguments.
    """
    if isinstance(schedule, int):
        schedule = make_schedule(config, schedule)
    parts = [optax.clip_by_global_norm(clip_norm)] if clip_norm is not None else []
    parts.append((_sgd if config.name == "sgd" else _by_name)(config, schedule, architecture))
    if multipliers is not None and any(factor != 1 for factor in multipliers.values()):
        if config.name.startswith("schedule_free"):
            raise UserError(
                f"optimizer.name={config.name} needs the same learning rate for all parameters; "
                f"remove finetune.learning_rates and finetune.layerwise_decay"
            )
        parts.append(_multiplied(dict(multipliers)))
    return optax.chain(*parts)


def eval_params(config: ConfigDict, opt_state: Any, params: dict[str, Any]) -> dict[str, Any]:
    """Returns the weights to evaluate: `params`, or their average for schedule-free optimizers (arXiv:2405.15682)."""
    if not config.name.startswith("schedule_free"):
        return params
    averaged = dict(params)
    for part in jax.tree.leaves(opt_state, is_leaf=_is_schedule_free):  # one, or one per starting step
        if _is_schedule_free(part):
            averaged |= optax.contrib.schedule_free_eval_params(part, {key: params[key] for key in part.z})
    return averaged


def _is_schedule_free(part: Any) -> bool:
    return isinstance(part, optax.contrib.ScheduleFreeState)


def _sgd(config: ConfigDict, schedule: optax.Schedule, architecture: Architecture) -> optax.GradientTransformation:
    if config.nesterov and not is_on(config.momentum):
        raise UserError("optimizer.nesterov=True needs momentum; set optimizer.momentum, or optimizer.nesterov=False")
    momentum = config.momentum if is_on(config.momentum) else None
    arguments = checked_arguments("sgd", optax.sgd, config.arguments, OWN_KEYS | SGD_KEYS)
    decay = optax.add_decayed_weights(config.weight_decay, _decayed(config, architecture))
    return optax.chain(
        decay if is_on(config.weight_decay) else optax.identity(),
        optax.sgd(schedule, momentum=momentum, nesterov=config.nesterov, **arguments),
    )


def _by_name(config: ConfigDict, schedule: optax.Schedule, architecture: Architecture) -> optax.GradientTransformation:
    known = optimizer_names()
    if config.name not in known:
        near = difflib.get_close_matches(config.name, known, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown config.optimizer.name={config.name!r}; did you mean {near!r}?")
    make = known[config.name]
    accepted = inspect.signature(make).parameters
    arguments = checked_arguments(config.name, make, config.arguments, OWN_KEYS)
    missing = [
        name
        for name, parameter in accepted.items()
        if parameter.default is parameter.empty and name not in {"learning_rate", *arguments}
    ]
    if missing:
        raise UserError(f"optimizer.name={config.name} needs values for {', '.join(missing)} in optimizer.arguments")
    if "weight_decay" in accepted:  # the defaults of some are not 0
        arguments["weight_decay"] = config.weight_decay
    elif is_on(config.weight_decay):
        raise UserError(f"optimizer.name={config.name} {_other_decay(accepted)}; set optimizer.weight_decay=0")
    masks = [name for name in ("mask", "weight_decay_mask") if name in accepted]
    arguments |= {name: _decayed(config, architecture) for name in masks}
    if is_on(config.weight_decay) and config.decay != "all" and not masks:
        raise UserError(f"optimizer.name={config.name} always decays all parameters; set optimizer.decay=all")
    if config.name == "muon":
        arguments["muon_weight_dimension_numbers"] = functools.partial(_muon_dimensions, architecture)
        arguments["adam_weight_decay"] = config.weight_decay
    if config.name.startswith("schedule_free"):
        # It replaces the schedule; optax implements the published warmup itself.
        if config.schedule != "constant" or config.warmup_epochs:
            raise UserError(
                f"optimizer.name={config.name} uses no schedule; "
                f"set optimizer.schedule=constant and optimizer.warmup_epochs=0"
            )
        schedule = schedule(0)
    try:
        made = make(schedule, **arguments)
    except (TypeError, ValueError) as error:  # a value that the optimizer rejects
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(f"config.optimizer.arguments are rejected by {config.name}: {reason}") from None
    return _with_masked_decay(made, _decayed(config, architecture)) if config.name == "muon" else made


def _other_decay(accepted: Iterable[str]) -> str:
    """Describes what an optimizer without an argument `weight_decay` has instead."""
    other = [name for name in accepted if "weight_decay" in name and not name.endswith("mask")]
    if not other:
        return "has no weight decay"
    return f"has {other[0]} instead, documented in optax (optimizer.arguments='{other[0]}=...')"


def optimizer_names() -> dict[str, Any]:
    """Returns optax's optimizers by name: the values of `optimizer.name` besides "sgd"."""
    optimizers = {}
    for module in (optax.contrib, optax):
        for name, value in vars(module).items():
            # nadam and nadamw are functools.partial objects.
            made = inspect.isfunction(value) or isinstance(value, functools.partial)
            if not made or name.startswith(("_", "scale_by")) or name in _LEFT_OUT:
                continue
            if next(iter(inspect.signature(value).parameters), "") == "learning_rate":
                optimizers[name] = value
    return optimizers


def _decayed(config: ConfigDict, architecture: Architecture) -> Any:
    """Returns the parameters that weight decay applies to, as optax's `mask`."""
    return lambda params: {key: config.decay == "all" or architecture.decays(key) for key in params}


def _muon_dimensions(architecture: Architecture, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the matrix axes for Muon: kernels [height, width, in, out] are matrices [height * width * in, out].

    All other parameters are None and are updated by Adam.
    """
    axes = {key: architecture.matrix_axes(key, getattr(leaf, "ndim", 0)) for key, leaf in params.items()}
    return {key: optax.contrib.MuonDimensionNumbers(*pair) if pair else None for key, pair in axes.items()}


def _with_masked_decay(inner: optax.GradientTransformation, decays: Callable) -> optax.GradientTransformation:
    """Masks weight decay of `inner`, which lacks a mask for some of it, by passing parameters without decay as 0.

    `inner` must not use the parameters for anything but decay, which holds for Muon and Adam.
    """

    def update(updates, state, params=None):
        seen = {key: params[key] if on else jnp.zeros_like(params[key]) for key, on in decays(params).items()}
        return inner.update(updates, state, seen)

    return optax.GradientTransformation(inner.init, update)


def _multiplied(multipliers: dict[str, float]) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, params: {key: multipliers.get(key, 1.0) * update for key, update in updates.items()}
    )
