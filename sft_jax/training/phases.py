"""The phases of a run and the learning-rate multipliers of its parameters."""

import dataclasses
import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from sft_jax.errors import UserError
from sft_jax.models import Network


@dataclasses.dataclass(frozen=True)
class Phase:
    """Consecutive epochs in which the same parameters are trained in the same way.

    Attributes:
      first: the first epoch, counted from 0.
      stop: the epoch after the last.
      multipliers: learning-rate multipliers of the trained parameters, by name.
      on_features: whether only the head is trained, on features that are computed once.
      size: side of the training images in pixels.
      start: the epoch since which exactly these parameters are trained, i.e. at which the optimizer started.
      head_only: whether only the head is trained.
    """

    first: int
    stop: int
    multipliers: Mapping[str, float]
    on_features: bool
    size: int
    start: int
    head_only: bool

    @property
    def trained(self) -> frozenset[str]:
        """Names of the trained parameters."""
        return frozenset(self.multipliers)


class _Stage(NamedTuple):
    """A stage of training: learning-rate multipliers by name, and whether it uses precomputed features."""

    multipliers: dict[str, float]
    on_features: bool


def phases(config: ConfigDict, network: Network) -> tuple[Phase, ...]:
    """Returns the phases of a run in order, from its first epoch to its last.

    Args:
      config: the whole configuration; `epochs`, `finetune`, `data.size` and `data.size_schedule` are read.
      network: the network, for the names and depths of its parameters.

    Raises:
      UserError: a pattern matches no parameter, no pattern matches some parameter, or nothing would be trained.
    """
    factors = multipliers(config.finetune, network)
    trained = {name: factor for name, factor in factors.items() if factor}
    head = {name: factor for name, factor in trained.items() if network.is_head(name)}
    if not trained or (config.finetune.method != "full" and not head):
        raise UserError("nothing to train: finetune.freeze and finetune.learning_rates freeze every parameter")
    stages, sizes = _stages(config, network, trained, head), _sizes(config)
    for size in sizes.values():
        network.architecture.check_size(size, "config.data.size_schedule")
    boundaries = sorted(first for first in stages.keys() | sizes.keys() if first < config.epochs)
    result = []
    for first, stop in itertools.pairwise([*boundaries, config.epochs]):
        start = _in_force(stages, first)
        stage = stages[start]
        size = config.data.size if stage.on_features else sizes[_in_force(sizes, first)]
        head_only = stage.multipliers.keys() <= head.keys()
        result.append(Phase(first, stop, stage.multipliers, stage.on_features, size, start, head_only))
    return tuple(result)


def _in_force(by_epoch: Mapping[int, Any], epoch: int) -> int:
    """Returns the last epoch of `by_epoch` that is not after `epoch`."""
    return max(first for first in by_epoch if first <= epoch)


def phase_of(phases: Sequence[Phase], epoch: int) -> Phase:
    """Returns the phase of `epoch`, counted from 0; the last phase for epochs after the end."""
    return next((phase for phase in phases if epoch < phase.stop), phases[-1])


def trained_since(phases: Sequence[Phase], phase: Phase) -> dict[str, int]:
    """Maps each parameter trained in `phase` to the first epoch of `phases` that trains it; none is frozen again."""
    return {name: min(other.first for other in phases if name in other.multipliers) for name in phase.multipliers}


def _stages(config: ConfigDict, network: Network, trained: dict, head: dict) -> dict[int, _Stage]:
    """Maps the first epoch of each stage to the stage."""
    method, epochs = config.finetune.method, config.epochs
    pooled = not network.architecture.dense  # heads for pixels read maps, not features
    if method == "head":
        return {0: _Stage(head, pooled)}
    if method == "head_then_full":
        if config.finetune.head_epochs >= epochs:
            raise UserError(
                f"finetune.head_epochs={config.finetune.head_epochs} must be less than epochs={epochs}, or the rest of "
                f"the network is never trained"
            )
        return {0: _Stage(head, pooled), config.finetune.head_epochs: _Stage(trained, False)}
    if method == "gradual":
        depth = {name: network.architecture.depth(name)[0] for name in trained}
        return {
            step * config.finetune.unfreeze_epochs: _Stage(
                {name: factor for name, factor in trained.items() if depth[name] >= lowest}, False
            )
            for step, lowest in enumerate(sorted(set(depth.values()), reverse=True))
        }
    return {0: _Stage(trained, False)}


def _sizes(config: ConfigDict) -> dict[int, int]:
    """Maps epochs to the size of the training images from that epoch on."""
    sizes, elapsed = {}, 0.0
    for pixels, fraction in config.data.size_schedule:
        sizes[round(elapsed * config.epochs)] = int(pixels)
        elapsed += fraction
    return sizes | {round(elapsed * config.epochs): config.data.size}


def multipliers(config: ConfigDict, network: Network) -> dict[str, float]:
    """Returns the learning-rate multiplier of every parameter; 0 if it is frozen.

    `freeze` takes precedence; otherwise it is the first match of `learning_rates` times `layerwise_decay`. Patterns
    match whole names, as in big_vision.

    Args:
      config: the group `finetune` of the configuration.
      network: see `phases`.

    Raises:
      UserError: see `phases`.
    """
    params = list(network.params)
    frozen = _matches("freeze", config.freeze, params)
    rates = _matches("learning_rates", [pattern for pattern, _ in config.learning_rates], params)
    chosen = dict(config.learning_rates)
    if config.learning_rates:
        missed = [name for name in params if name not in rates and name not in frozen]
        if missed:
            more = f" and {len(missed) - 5} more" if len(missed) > 5 else ""
            raise UserError(
                f"finetune.learning_rates: no pattern matches {', '.join(missed[:5])}{more}; "
                f"add '.*=1' at the end for all others"
            )
    norms = {name.removesuffix(".mean") for name in network.batch_stats if name.endswith(".mean")}
    depth = {name: network.architecture.depth(name) for name in params}
    blocks = sorted(set(depth.values()))
    factors = {}
    for name in params:
        factor = config.layerwise_decay ** (len(blocks) - 1 - blocks.index(depth[name]))
        if config.batch_norm == "freeze" and name.rpartition(".")[0] in norms:
            factor = 0.0
        factors[name] = 0.0 if name in frozen else factor * chosen[rates[name]] if name in rates else factor
    return factors


def _matches(key: str, patterns: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Maps each name to the first pattern that matches all of it; names without a match are absent."""
    first_match: dict[str, str] = {}
    for pattern in patterns:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise UserError(f"finetune.{key}: {pattern!r} is not a valid regular expression: {error}") from None
        matched = [name for name in names if compiled.fullmatch(name)]
        if not matched:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
            raise UserError(f"finetune.{key}: {pattern!r} matches no parameter; similar names: {', '.join(near)}")
        for name in matched:
            first_match.setdefault(name, pattern)
    return first_match
