"""From `config.optimizer` to optax: schedules, optimizers by name, and multipliers of the learning rate."""

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

# Of optax's functions of a learning rate: those that want more than the batch's gradient (the loss, its curvature, the
# gradient of each image), take no schedule, are deprecated, or that "sgd" stands for.
_LEFT_OUT = {"dpsgd", "lbfgs", "momo", "momo_adam", "noisy_sgd", "optimistic_adam", "rprop", "sgd", "sm3", "sophia"}


def make_schedule(
    config: ConfigDict, steps: int, *, peak: Any = None, steps_per_epoch: int = 1, batch_size: int = 1
) -> optax.Schedule:
    """The learning rate at each of `steps` steps.

    Args:
      config: the part `optimizer` of the configuration.
      steps: of the whole training.
      peak: in place of `learning_rate`.
      steps_per_epoch: the unit of `warmup_epochs`.
      batch_size: of the run, where `reference_batch` is set.
    """
    peak = config.learning_rate if peak is None else peak
    if config.reference_batch is not None:
        peak *= batch_size / config.reference_batch  # Goyal et al., 2017, arXiv:1706.02677
    if config.schedule == "one_cycle":
        if config.warmup_epochs:
            raise UserError("optimizer.schedule=one_cycle warms up by itself; leave optimizer.warmup_epochs at 0")
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
    # From the first step on something is learnt: the rise ends at the peak after `warmup` steps.
    return optax.join_schedules([optax.linear_schedule(peak / (warmup + 1), peak, warmup), schedule], [warmup])


def make_optimizer(
    config: ConfigDict,
    schedule: optax.Schedule | int,
    *,
    architecture: Architecture,
    clip_norm: float | None = None,
    multipliers: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """The optimizer that `config`, the part `optimizer` of the configuration, names.

    "sgd" is `torch.optim.SGD`: weight decay is added to the gradient, before the momentum.

    v = momentum * v + (gradient + weight_decay * weight); weight -= learning_rate * v

    Args:
      config: see above.
      schedule: of the learning rate, by the optimizer's own count of steps; or the number of steps of `make_schedule`.
      architecture: of the network: which parameters decay, and which are matrices for Muon.
      clip_norm: gradients whose norm over all parameters is larger are scaled down to it.
      multipliers: of the learning rate, by the parameter's name; 1 where there is none.

    Raises:
      UserError: there is no such optimizer, or it does not take these arguments.
    """
    if isinstance(schedule, int):
        schedule = make_schedule(config, schedule)
    parts = [optax.clip_by_global_norm(clip_norm)] if clip_norm is not None else []
    parts.append((_sgd if config.name == "sgd" else _by_name)(config, schedule, architecture))
    if multipliers is not None and any(factor != 1 for factor in multipliers.values()):
        if config.name.startswith("schedule_free"):
            raise UserError(
                f"optimizer.name={config.name} averages weights by their learning rate, which must be one for all; "
                f"leave finetune.learning_rates and finetune.layerwise_decay alone"
            )
        parts.append(_multiplied(dict(multipliers)))
    return optax.chain(*parts)


def eval_params(config: ConfigDict, opt_state: Any, params: dict[str, Any]) -> dict[str, Any]:
    """The weights to evaluate: `params`, but for schedule-free optimizers their average (arXiv:2405.15682)."""
    if not config.name.startswith("schedule_free"):
        return params
    found = dict(params)
    for part in jax.tree.leaves(opt_state, is_leaf=_is_schedule_free):  # one, or one for each beginning
        if _is_schedule_free(part):
            found |= optax.contrib.schedule_free_eval_params(part, {key: params[key] for key in part.z})
    return found


def _is_schedule_free(part: Any) -> bool:
    return isinstance(part, optax.contrib.ScheduleFreeState)


def _sgd(config: ConfigDict, schedule: optax.Schedule, architecture: Architecture) -> optax.GradientTransformation:
    if config.nesterov and not is_on(config.momentum):
        raise UserError("optimizer.nesterov=True needs a momentum; set optimizer.momentum, or optimizer.nesterov=False")
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
        raise UserError(f"unknown config.optimizer.name={config.name!r}; the nearest one is {near!r}")
    make = known[config.name]
    accepted = inspect.signature(make).parameters
    arguments = checked_arguments(config.name, make, config.arguments, OWN_KEYS)
    missing = [
        name
        for name, parameter in accepted.items()
        if parameter.default is parameter.empty and name not in {"learning_rate", *arguments}
    ]
    if missing:
        raise UserError(f"optimizer.name={config.name} needs config.optimizer.arguments for {', '.join(missing)}")
    if "weight_decay" in accepted:  # several have a default of their own
        arguments["weight_decay"] = config.weight_decay
    elif is_on(config.weight_decay):
        raise UserError(f"optimizer.name={config.name} {_other_decay(accepted)}; set optimizer.weight_decay=0")
    masks = [name for name in ("mask", "weight_decay_mask") if name in accepted]
    arguments |= {name: _decayed(config, architecture) for name in masks}
    if is_on(config.weight_decay) and config.decay != "all" and not masks:
        raise UserError(f"optimizer.name={config.name} decays all parameters alike; set optimizer.decay=all")
    if config.name == "muon":
        arguments["muon_weight_dimension_numbers"] = functools.partial(_muon_dimensions, architecture)
        arguments["adam_weight_decay"] = config.weight_decay
    if config.name.startswith("schedule_free"):
        # It replaces the schedule; optax's own warm-up is the one it was published with.
        if config.schedule != "constant" or config.warmup_epochs:
            raise UserError(f"optimizer.name={config.name} needs no schedule; leave optimizer.schedule at constant")
        schedule = schedule(0)
    try:
        made = make(schedule, **arguments)
    except (TypeError, ValueError) as error:  # a number that the optimizer does not want
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(f"config.optimizer.arguments: {config.name} cannot work with them: {reason}") from None
    return _with_masked_decay(made, _decayed(config, architecture)) if config.name == "muon" else made


def _other_decay(accepted: Iterable[str]) -> str:
    """What there is in place of an argument `weight_decay`."""
    other = [name for name in accepted if "weight_decay" in name and not name.endswith("mask")]
    if not other:
        return "has no weight decay"
    return f"has {other[0]} in its place, see optax for what it means (optimizer.arguments='{other[0]}=...')"


def optimizer_names() -> dict[str, Any]:
    """What `optimizer.name` may be, besides "sgd": optax's functions of a learning rate, by name."""
    found = {}
    for module in (optax.contrib, optax):
        for name, value in vars(module).items():
            # nadam and nadamw are functools.partial objects.
            made = inspect.isfunction(value) or isinstance(value, functools.partial)
            if not made or name.startswith(("_", "scale_by")) or name in _LEFT_OUT:
                continue
            if next(iter(inspect.signature(value).parameters), "") == "learning_rate":
                found[name] = value
    return found


def _decayed(config: ConfigDict, architecture: Architecture) -> Any:
    """What weight decay acts on, as optax's `mask`."""
    return lambda params: {key: config.decay == "all" or architecture.decays(key) for key in params}


def _muon_dimensions(architecture: Architecture, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns which parameters are matrices, as kernels [height, width, in, out] are [height * width * in, out]; all
    others go to Adam.
    """
    axes = {key: architecture.matrix_axes(key, getattr(leaf, "ndim", 0)) for key, leaf in params.items()}
    return {key: optax.contrib.MuonDimensionNumbers(*found) if found else None for key, found in axes.items()}


def _with_masked_decay(inner: optax.GradientTransformation, decays: Callable) -> optax.GradientTransformation:
    """`inner`, which has no mask for some of its weight decay: what does not decay it sees as 0.

    Its decay must be all that reads the parameters, as it is of Muon and Adam.
    """

    def update(updates, state, params=None):
        seen = {key: params[key] if on else jnp.zeros_like(params[key]) for key, on in decays(params).items()}
        return inner.update(updates, state, seen)

    return optax.GradientTransformation(inner.init, update)


def _multiplied(multipliers: dict[str, float]) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, params: {key: multipliers.get(key, 1.0) * update for key, update in updates.items()}
    )
