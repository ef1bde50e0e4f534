"""An optimizer for parameters that are unfrozen at different steps, as in LP-FT and gradual unfreezing."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from sft_jax.models import Architecture
from sft_jax.training.optimizer import make_optimizer


def make_staged_optimizer(
    config: ConfigDict,
    schedule: optax.Schedule,
    since: Mapping[str, int],
    *,
    architecture: Architecture,
    clip_norm: float | None,
    multipliers: Mapping[str, float],
) -> optax.GradientTransformation:
    """Makes `make_optimizer` for parameters that are unfrozen at different steps.

    Parameters unfrozen at the same step share an optimizer with its own step count: torch's Adam counts the steps of
    each parameter, while optax's would correct the bias of all moments as if they were as old as the oldest.

    Args:
      config: see `make_optimizer`.
      schedule: learning rate as a function of the run's steps.
      since: parameter -> the step of the run at which its training began.
      architecture: see `make_optimizer`.
      clip_norm: maximum global norm over all parameters.
      multipliers: see `make_optimizer`; for all names in `since`.

    Its state is that of `make_optimizer` if all parameters began at the same step; otherwise see `by_beginning`.
    """

    def beginning_at(start: int, clip_norm: float | None) -> optax.GradientTransformation:
        return make_optimizer(
            config,
            # A float, because optax's schedules divide the count.
            lambda count: schedule(jnp.asarray(count + start, jnp.float32)),
            architecture=architecture,
            clip_norm=clip_norm,
            multipliers={name: multipliers[name] for name in since if since[name] == start},
        )

    starts = sorted(set(since.values()))
    if len(starts) == 1:
        return beginning_at(starts[0], clip_norm)
    # Gradients are clipped jointly; clipping at infinity keeps the structure of the state.
    optimizers = {str(start): beginning_at(start, clip_norm and math.inf) for start in starts}
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)

    def own(start: str, tree: Mapping[str, Any]) -> dict[str, Any]:
        return {name: leaf for name, leaf in tree.items() if str(since[name]) == start}

    def init(params):
        return {start: optimizer.init(own(start, params)) for start, optimizer in optimizers.items()}

    def update(updates, state, params=None):
        updates, _ = clip.update(updates, clip.init(params))
        new_updates: dict[str, Any] = {}
        new_state: dict[str, Any] = {}
        for start, optimizer in optimizers.items():
            new, new_state[start] = optimizer.update(own(start, updates), state[start], own(start, params))
            new_updates |= new
        return new_updates, new_state

    return optax.GradientTransformation(init, update)


def by_beginning(opt_state: Any, since: Mapping[str, int]) -> dict[str, Any]:
    """Splits the state of `make_staged_optimizer` into those of its optimizers, by the step at which they began."""
    starts = set(since.values())
    return opt_state if len(starts) > 1 else {str(start): opt_state for start in starts}
