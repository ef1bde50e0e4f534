"""Results of trials: the score over folds, the number of epochs, and the ranking."""

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
    """The result of a trial on a fold; if it diverged or was pruned, of the epochs before.

    Attributes:
      val_loss, train_loss: by epoch.
      score: score of the monitored metric by epoch, see `Monitor.score`.
      figures: name -> values by epoch, of the task's main metric.
      stops_early: whether early stopping is enabled (regularization.early_stopping), so that each fold has its own best
        epoch.
      state: `DONE`, `PRUNED` or `DIVERGED`.
      steps: number of training steps.
      seconds: training and validation time, divided by the number of trials that trained at once.
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
        """Makes a fold from its record in the study."""
        names = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in record.items() if name in names}
        if "val_accuracy" in record:  # early versions had only classification, and at first no other score
            values["figures"] = {"val_accuracy": record["val_accuracy"]}
            values["score"] = record.get("score") or list(record["val_accuracy"])
        return cls(**values)

    def to_json(self, monitor: Monitor) -> dict[str, Any]:
        """Returns its entry in search.json: the fields by name, with `figures` flattened, and `monitor`."""
        values = dataclasses.asdict(self)
        return values.pop("figures") | values | {"monitor": monitor.name}


@dataclasses.dataclass(frozen=True)
class Trial:
    """A finished trial with its number, counted from 1, and the monitor that scores it."""

    number: int
    point: Point
    folds: tuple[Fold, ...]
    monitor: Monitor

    @property
    def state(self) -> str:
        """`DIVERGED` or `PRUNED` if one of its folds is, otherwise `DONE`."""
        states = {fold.state for fold in self.folds}
        return DIVERGED if DIVERGED in states else PRUNED if PRUNED in states else DONE

    @property
    def epochs(self) -> int:
        """The number of epochs with the best mean score over the folds.

        With early stopping, the mean of the folds' best epochs.
        """
        return round(float(np.mean(self.epochs_per_fold)))

    @property
    def stops_early(self) -> bool:
        """Whether each fold has its own best epoch."""
        return any(fold.stops_early for fold in self.folds)

    @property
    def epochs_per_fold(self) -> list[int]:
        """The number of epochs after which each fold is scored."""
        if self.stops_early:
            return [int(np.argmax(fold.score)) + 1 for fold in self.folds]
        return [int(np.argmax(self.curve())) + 1] * len(self.folds)

    @property
    def per_fold(self) -> list[float]:
        """The score of each fold after `epochs_per_fold` epochs."""
        return self._scored("score")

    @property
    def mean(self) -> float:
        """The mean of `per_fold`; the worst score if a fold diverged, because such a run has no result."""
        if self.state == DIVERGED:
            return self.monitor.worst
        return float(np.mean(self.per_fold))

    def shown(self, value: float) -> str:
        """Formats a score or its standard deviation."""
        return self.monitor.shown(abs(value) if self.monitor.lower_is_better else value)

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation of `per_fold` (divisor n - 1); None for one fold."""
        return float(np.std(self.per_fold, ddof=1)) if len(self.folds) > 1 else None

    @property
    def loss(self) -> float:
        """Mean validation loss after the same epochs, which breaks ties in the score."""
        return float(np.mean(self._scored("val_loss")))

    @property
    def seconds(self) -> float:
        """Training and validation time, over all folds."""
        return sum(fold.seconds for fold in self.folds)

    def _scored(self, name: str) -> list[float]:
        return [getattr(fold, name)[epochs - 1] for fold, epochs in zip(self.folds, self.epochs_per_fold, strict=True)]

    def curve(self) -> np.ndarray:
        """Returns the mean score over the folds by epoch, up to the shortest fold."""
        shortest = min(len(fold.score) for fold in self.folds)
        return np.mean([fold.score[:shortest] for fold in self.folds], axis=0)

    def row(self) -> dict[str, Any]:
        """Returns the trial's row of the table, JSON-serialisable and in the order of the columns."""
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
    """Makes the trial with number `number` from its Optuna trial."""
    records = [record for fold in range(folds) if (record := fold_of(kept, fold)) is not None]
    return Trial(number, point_of(kept, space), tuple(map(Fold.from_json, records)), monitor)


def finished(study: Study, space: Space, folds: int, monitor: Monitor) -> list[Trial]:
    """Returns the finished trials in order."""
    return [trial_of(kept, number, space, folds, monitor) for number, kept in enumerate(study.trials(), 1)]


def ranked(trials: Iterable[Trial]) -> list[Trial]:
    """Sorts trials from best to worst; those without a score come last, pruned before diverged ones."""
    order = [DONE, PRUNED, DIVERGED]
    return sorted(
        trials,
        key=lambda trial: (order.index(trial.state), *((-trial.mean, trial.loss) if trial.state == DONE else ())),
    )


def best(trials: Sequence[Trial]) -> Trial | None:
    """Returns the best trial; None if none has a score."""
    first = ranked(trials)[:1]
    return first[0] if first and first[0].state == DONE else None
