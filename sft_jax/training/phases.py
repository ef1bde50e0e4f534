"""What is trained when: learning-rate multipliers by parameter, and the phases of a run."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from ml_collections import ConfigDict

from sft_jax.errors import UserError

HEAD = "fc."
HEAD_STAGE = 5  # after the stem and four stages


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
    """

    first: int
    stop: int
    multipliers: Mapping[str, float]
    on_features: bool
    size: int
    start: int

    @property
    def trained(self) -> frozenset[str]:
        """The names of the parameters that are trained."""
        return frozenset(self.multipliers)

    @property
    def head_only(self) -> bool:
        """Whether nothing but the head is trained."""
        return all(name.startswith(HEAD) for name in self.multipliers)


def phases(config: ConfigDict, params: Sequence[str], batch_stats: Iterable[str]) -> tuple[Phase, ...]:
    """The phases of a run, one after the other, from its first epoch to its last.

    Args:
      config: the whole configuration; `epochs`, `finetune`, `data.size` and `data.size_schedule` are read.
      params: names of the network's parameters.
      batch_stats: names of batch norm's statistics.

    Raises:
      UserError: a pattern matches no parameter, a parameter is matched by none, or nothing would be trained.
    """
    factors = multipliers(config.finetune, params, batch_stats)
    trained = {name: factor for name, factor in factors.items() if factor}
    head = {name: factor for name, factor in trained.items() if name.startswith(HEAD)}
    if not trained or (config.finetune.method != "full" and not head):
        raise UserError("finetune.freeze and finetune.learning_rates leave nothing to train")
    starts = _starts(config, trained, head)
    sizes = _sizes(config)
    found = []
    for first in sorted(starts.keys() | sizes.keys()):
        start = max(epoch for epoch in starts if epoch <= first)
        chosen, on_features = starts[start]
        size = config.data.size if on_features else sizes[max(epoch for epoch in sizes if epoch <= first)]
        found.append(Phase(first, config.epochs, chosen, on_features, size, start))
    found = [phase for phase in found if phase.first < config.epochs]
    for index in range(len(found) - 1):
        found[index] = dataclasses.replace(found[index], stop=found[index + 1].first)
    return tuple(found)


def phase_of(phases: Sequence[Phase], epoch: int) -> Phase:
    """The phase of `epoch`, counted from 0; the last one of those behind the end."""
    return next((phase for phase in phases if epoch < phase.stop), phases[-1])


def trained_since(phases: Sequence[Phase], phase: Phase) -> dict[str, int]:
    """The first epoch of every parameter that `phase`, one of `phases`, trains: from it on it is trained all along."""
    return {name: min(other.first for other in phases if name in other.multipliers) for name in phase.multipliers}


def _starts(config: ConfigDict, trained: dict, head: dict) -> dict[int, tuple[dict[str, float], bool]]:
    """First epoch -> the multipliers from then on, and whether features are enough."""
    method, epochs = config.finetune.method, config.epochs
    if method == "head":
        return {0: (head, True)}
    if method == "head_then_full":
        if config.finetune.head_epochs >= epochs:
            raise UserError(
                f"finetune.head_epochs={config.finetune.head_epochs} leaves none of the epochs={epochs} for the rest"
            )
        return {0: (head, True), config.finetune.head_epochs: (trained, False)}
    if method == "gradual":
        stages = sorted({_stage(name) for name in trained}, reverse=True)
        return {
            step * config.finetune.unfreeze_epochs: (
                {name: factor for name, factor in trained.items() if _stage(name) >= stage},
                False,
            )
            for step, stage in enumerate(stages)
        }
    return {0: (trained, False)}


def _sizes(config: ConfigDict) -> dict[int, int]:
    """First epoch -> size of the training images from then on."""
    found, share = {}, 0.0
    for pixels, part in config.data.size_schedule:
        found[round(share * config.epochs)] = int(pixels)
        share += part
    return found | {round(share * config.epochs): config.data.size}


def multipliers(config: ConfigDict, params: Sequence[str], batch_stats: Iterable[str]) -> dict[str, float]:
    """The learning rate's multiplier of every parameter, 0 where it is frozen.

    `freeze` comes first, then `learning_rates` (its first pattern that matches) times `layerwise_decay`. Patterns match
    whole names, as in big_vision.

    Args:
      config: the part `finetune` of the configuration.
      params: see `phases`.
      batch_stats: see `phases`.

    Raises:
      UserError: see `phases`.
    """
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
    norms = {name.removesuffix(".mean") for name in batch_stats if name.endswith(".mean")}
    blocks = sorted({_block(name) for name in params})
    factors = {}
    for name in params:
        factor = config.layerwise_decay ** (len(blocks) - 1 - blocks.index(_block(name)))
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


def _block(name: str) -> tuple[int, int]:
    """Where a parameter stands from the stem (0, 0) over the blocks, "layer1.0" = (1, 0), to the head."""
    match = re.match(r"layer(\d+)\.(\d+)", name)
    if match:
        return int(match[1]), int(match[2])
    return (HEAD_STAGE, 0) if name.startswith(HEAD) else (0, 0)


def _stage(name: str) -> int:
    return _block(name)[0]
