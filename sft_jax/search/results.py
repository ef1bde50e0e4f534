"""What trials came to: the score over folds, the number of epochs, and the order of merit."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna

from sft_jax.search.space import Point, Space
from sft_jax.search.study import Study, fold_of, point_of
from sft_jax.tasks import Monitor

DONE, PRUNED, DIVERGED = "done", "pruned", "diverged"


@dataclasses.dataclass
class Fold:
    """One trial on one fold. Of a run that diverged or was pruned, the epochs before.

    Attributes:
      val_loss, train_loss: by epoch.
      score: by epoch, of the configuration's monitor, see `Monitor.score`.
      figures: by name and epoch, the task's own monitor.
      stops_early: whether a run of these settings ends by itself (regularization.early_stopping): the epoch that it
        keeps is then its own best one, whatever the others' are.
      state: `DONE`, `PRUNED` or `DIVERGED`.
      steps: of training.
      seconds: of training and validation; of trials that trained at once, the trial's share.
    """

    val_loss: list[float] = dataclasses.field(default_factory=list)
    train_loss: list[float] = dataclasses.field(default_factory=list)
    score: list[float] = dataclasses.field(default_factory=list)
    figures: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    stops_early: bool = False
    state: str = DONE
    steps: int = 0
    seconds: float = 0.0

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Fold":
        """Makes the fold of what the study keeps of it."""
        names = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in record.items() if name in names}
        if "val_accuracy" in record:  # of versions whose only task was classification; the first knew no other score
            values["figures"] = {"val_accuracy": record["val_accuracy"]}
            values["score"] = record.get("score") or list(record["val_accuracy"])
        return cls(**values)

    def to_json(self, monitor: Monitor) -> dict[str, Any]:
        """Returns what search.json says of it: the fields by name, each of `figures` by its own, and `monitor`."""
        values = dataclasses.asdict(self)
        return values.pop("figures") | values | {"monitor": monitor.name}


@dataclasses.dataclass(frozen=True)
class Trial:
    """A finished trial, with its number counted from 1, and what it is scored by."""

    number: int
    point: Point
    folds: tuple[Fold, ...]
    monitor: Monitor

    @property
    def state(self) -> str:
        """`DIVERGED` or `PRUNED` where one of its folds is, else `DONE`."""
        states = {fold.state for fold in self.folds}
        return DIVERGED if DIVERGED in states else PRUNED if PRUNED in states else DONE

    @property
    def epochs(self) -> int:
        """The number of epochs with the best score on average over the folds: that of cross-validation.

        Of folds that stop early, the mean of their own best ones.
        """
        return round(float(np.mean(self.epochs_per_fold)))

    @property
    def stops_early(self) -> bool:
        """Whether each fold has a best epoch of its own."""
        return any(fold.stops_early for fold in self.folds)

    @property
    def epochs_per_fold(self) -> list[int]:
        """After how many epochs each fold is scored."""
        if self.stops_early:
            return [int(np.argmax(fold.score)) + 1 for fold in self.folds]
        return [int(np.argmax(self.curve())) + 1] * len(self.folds)

    @property
    def per_fold(self) -> list[float]:
        """The score after `epochs_per_fold` epochs, of each fold."""
        return self._scored("score")

    @property
    def mean(self) -> float:
        """The mean of `per_fold`. The worst there is where a fold diverged: that run would end without a result."""
        if self.state == DIVERGED:
            return self.monitor.worst
        return float(np.mean(self.per_fold))

    def shown(self, value: float) -> str:
        """Formats a score, or its standard deviation."""
        return self.monitor.shown(abs(value) if self.monitor.lower_is_better else value)

    @property
    def deviation(self) -> float | None:
        """The standard deviation of `per_fold` (of a sample, divided by n - 1); None for one fold."""
        return float(np.std(self.per_fold, ddof=1)) if len(self.folds) > 1 else None

    @property
    def loss(self) -> float:
        """Mean validation loss of the same epochs: of two trials with one score the lower one is better."""
        return float(np.mean(self._scored("val_loss")))

    @property
    def seconds(self) -> float:
        """Of training and validation, over all folds."""
        return sum(fold.seconds for fold in self.folds)

    def _scored(self, name: str) -> list[float]:
        return [getattr(fold, name)[epochs - 1] for fold, epochs in zip(self.folds, self.epochs_per_fold, strict=True)]

    def curve(self) -> np.ndarray:
        """The score by epoch, the mean over the folds, as far as all of them got."""
        shortest = min(len(fold.score) for fold in self.folds)
        return np.mean([fold.score[:shortest] for fold in self.folds], axis=0)

    def row(self) -> dict[str, Any]:
        """The trial's line of the table: JSON-like, in the order of the columns."""
        done = self.state == DONE
        return {
            "trial": self.number,
            "state": self.state,
            **self.point,
            "mean": self.monitor.score(self.mean) if done else None,
            "standard_deviation": self.deviation if done else None,
            "per_fold": [self.monitor.score(value) for value in self.per_fold] if done else None,
            "epochs": self.epochs if done else None,
            "validation_loss": self.loss if done else None,
            "seconds": self.seconds,
        }


def trial_of(
    kept: optuna.Trial | optuna.trial.FrozenTrial, number: int, space: Space, folds: int, monitor: Monitor
) -> Trial:
    """Returns what is kept of a trial, under the number `number`."""
    records = [record for fold in range(folds) if (record := fold_of(kept, fold)) is not None]
    return Trial(number, point_of(kept, space), tuple(map(Fold.from_json, records)), monitor)


def finished(study: Study, space: Space, folds: int, monitor: Monitor) -> list[Trial]:
    """Returns the trials that ended, in their order."""
    return [trial_of(kept, number, space, folds, monitor) for number, kept in enumerate(study.trials(), 1)]


def ranked(trials: Iterable[Trial]) -> list[Trial]:
    """From the best to the worst; those without a score come last, the pruned before the diverged."""
    order = [DONE, PRUNED, DIVERGED]
    return sorted(
        trials,
        key=lambda trial: (order.index(trial.state), *((-trial.mean, trial.loss) if trial.state == DONE else ())),
    )


def best(trials: Sequence[Trial]) -> Trial | None:
    """The best one; None where none has a score."""
    first = ranked(trials)[:1]
    return first[0] if first and first[0].state == DONE else None
