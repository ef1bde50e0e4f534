"""What is trained when: learning-rate multipliers by parameter, and the phases of a run."""

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
      multipliers: of the learning rate, by the names of the parameters that are trained.
      on_features: whether only the head is trained, on features of the rest that are computed once.
      size: side of the training images in pixels.
      start: the first epoch that had these parameters: the optimizer's state is as old.
      head_only: whether nothing but the head is trained.
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
        """The names of the parameters that are trained."""
        return frozenset(self.multipliers)


class _Stage(NamedTuple):
    """What is trained from an epoch on: learning-rate multipliers by name, and whether features are enough."""

    multipliers: dict[str, float]
    on_features: bool


def phases(config: ConfigDict, network: Network) -> tuple[Phase, ...]:
    """Returns the phases of a run, one after the other, from its first epoch to its last.

    Args:
      config: the whole configuration; `epochs`, `finetune`, `data.size` and `data.size_schedule` are read.
      network: its parameters' names, and where they lie.

    Raises:
      UserError: a pattern matches no parameter, a parameter is matched by none, or nothing would be trained.
    """
    factors = multipliers(config.finetune, network)
    trained = {name: factor for name, factor in factors.items() if factor}
    head = {name: factor for name, factor in trained.items() if network.is_head(name)}
    if not trained or (config.finetune.method != "full" and not head):
        raise UserError("finetune.freeze and finetune.learning_rates leave nothing to train")
    stages, sizes = _stages(config, network, trained, head), _sizes(config)
    boundaries = sorted(first for first in stages.keys() | sizes.keys() if first < config.epochs)
    found = []
    for first, stop in itertools.pairwise([*boundaries, config.epochs]):
        start = _in_force(stages, first)
        stage = stages[start]
        size = config.data.size if stage.on_features else sizes[_in_force(sizes, first)]
        head_only = stage.multipliers.keys() <= head.keys()
        found.append(Phase(first, stop, stage.multipliers, stage.on_features, size, start, head_only))
    return tuple(found)


def _in_force(by_epoch: Mapping[int, Any], epoch: int) -> int:
    """Returns the last of the epochs of `by_epoch` that is not after `epoch`."""
    return max(first for first in by_epoch if first <= epoch)


def phase_of(phases: Sequence[Phase], epoch: int) -> Phase:
    """The phase of `epoch`, counted from 0; the last one of those behind the end."""
    return next((phase for phase in phases if epoch < phase.stop), phases[-1])


def trained_since(phases: Sequence[Phase], phase: Phase) -> dict[str, int]:
    """The first epoch of every parameter that `phase`, one of `phases`, trains: from it on it is trained all along."""
    return {name: min(other.first for other in phases if name in other.multipliers) for name in phase.multipliers}


def _stages(config: ConfigDict, network: Network, trained: dict, head: dict) -> dict[int, _Stage]:
    """Returns what is trained from which epoch on."""
    method, epochs = config.finetune.method, config.epochs
    if method == "head":
        return {0: _Stage(head, True)}
    if method == "head_then_full":
        if config.finetune.head_epochs >= epochs:
            raise UserError(
                f"finetune.head_epochs={config.finetune.head_epochs} leaves none of the epochs={epochs} for the rest"
            )
        return {0: _Stage(head, True), config.finetune.head_epochs: _Stage(trained, False)}
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
    """First epoch -> size of the training images from then on."""
    found, share = {}, 0.0
    for pixels, part in config.data.size_schedule:
        found[round(share * config.epochs)] = int(pixels)
        share += part
    return found | {round(share * config.epochs): config.data.size}


def multipliers(config: ConfigDict, network: Network) -> dict[str, float]:
    """The learning rate's multiplier of every parameter, 0 where it is frozen.

    `freeze` comes first, then `learning_rates` (its first pattern that matches) times `layerwise_decay`. Patterns match
    whole names, as in big_vision.

    Args:
      config: the part `finetune` of the configuration.
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
                f"end with one for all the rest, as '.*=1'"
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
    """Name -> the first pattern that matches all of it."""
    found: dict[str, str] = {}
    for pattern in patterns:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise UserError(f"finetune.{key}: {pattern!r} is no regular expression: {error}") from None
        matched = [name for name in names if compiled.fullmatch(name)]
        if not matched:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
            raise UserError(f"finetune.{key}: {pattern!r} matches no parameter; the nearest are {', '.join(near)}")
        for name in matched:
            found.setdefault(name, pattern)
    return found
