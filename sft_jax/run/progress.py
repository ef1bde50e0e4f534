"""Progress of a run: what resuming needs in addition to the arrays of `TrainState`."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sft_jax.tasks import Monitor, Task


@dataclasses.dataclass
class Progress:
    """The progress of a run, saved as JSON with every checkpoint.

    Attributes:
      epoch: number of finished epochs.
      epoch_steps, epoch_loss, epoch_sums, epoch_seconds: number of steps in the unfinished epoch, the sums of their
        losses and of `Task.train_sums`, and their duration.
      best, best_epoch: best value of the monitored metric so far and its epoch, None before the first.
      seconds: training and validation time, over all sessions.
      rows: the rows of metrics.jsonl, one per finished epoch.
      learnt: what predictions need besides the weights, see `Task.learnt`.
    """

    epoch: int = 0
    epoch_steps: int = 0
    epoch_loss: float = 0.0
    epoch_sums: dict[str, float] = dataclasses.field(default_factory=dict)
    epoch_seconds: float = 0.0
    best: float | None = None
    best_epoch: int | None = None
    seconds: float = 0.0
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    learnt: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Progress":
        """Inverts `to_json`."""
        values = dict(values)
        if "epoch_correct" in values:  # from early versions, which only had classification
            values["epoch_sums"] = {"correct": values.pop("epoch_correct")}
        return cls(**values)

    def add(self, losses: np.ndarray, sums: Mapping[str, np.ndarray], seconds: float) -> None:
        """Adds steps to the unfinished epoch: their mean losses [steps] and sums, each [steps]."""
        # Added one by one, in double precision, so that the sum does not depend on the division into calls.
        for loss in losses.tolist():
            self.epoch_loss += loss
        for name, values in sums.items():
            self.epoch_sums[name] = sum(values.tolist(), start=self.epoch_sums.get(name, 0))
        self.epoch_steps += len(losses)
        self.epoch_seconds += seconds

    def finish_epoch(
        self,
        task: Task,
        monitor: Monitor,
        *,
        learning_rate: float,
        batch_size: int,
        validation: dict[str, Any],
        validation_seconds: float,
        extra: dict[str, Any] | None = None,
    ) -> bool:
        """Finishes the epoch and appends its row, extended by `extra`; returns whether `monitor` is best so far."""
        self.epoch += 1
        value = validation[monitor.figure]
        is_best = better(monitor.score(value), None if self.best is None else monitor.score(self.best))
        if is_best:
            self.best, self.best_epoch = value, self.epoch
        examples = self.epoch_steps * batch_size
        of_training = task.train_figures(self.epoch_sums, examples)
        self.rows.append(
            {
                "epoch": self.epoch,
                "step": self.epoch * self.epoch_steps,
                "learning_rate": learning_rate,
                "train_loss": self.epoch_loss / self.epoch_steps,
                **{f"train_{name}": figure for name, figure in of_training.items()},
                "val_loss": validation["loss"],
                **{name: validation[each.figure] for name, each in task.monitors.items()},
                "best": self.best,
                "train_images_per_s": examples / self.epoch_seconds,
                "epoch_s": self.epoch_seconds + validation_seconds,
                **(extra or {}),
            }
        )
        self.learnt = task.learnt(validation)
        self.seconds += self.epoch_seconds + validation_seconds
        self.epoch_steps, self.epoch_loss, self.epoch_sums, self.epoch_seconds = 0, 0.0, {}, 0.0
        return is_best

    def outcome(self, task: type[Task] | Task, monitor: Monitor) -> dict[str, Any]:
        """Returns the entries of results.json about training.

        They are best_epoch, epochs, steps, seconds, and the best epoch's values of the task's main metric, e.g.
        best_val_accuracy, and of `monitor` if that is another one, e.g. best_val_loss.
        """
        main = task.main().name
        return {
            "best_epoch": self.best_epoch,
            f"best_{monitor.name}": self.best,
            f"best_{main}": self.rows[self.best_epoch - 1][main] if self.best_epoch else None,
            "epochs": self.epoch,
            "steps": self.rows[-1]["step"] if self.rows else 0,
            "seconds": self.seconds,
        }


def better(candidate: float, best: float | None) -> bool:
    """Returns whether `candidate` beats `best` (None: none yet). Ties keep the earlier one; NaN and inf never win."""
    return math.isfinite(candidate) and (best is None or candidate > best)


def waited(values: Iterable[float]) -> int:
    """Returns the number of epochs since the best of `values`, one per epoch; all epochs if no value is finite."""
    best, since = None, 0
    for value in values:
        is_best = better(value, best)
        best, since = (value, 0) if is_best else (best, since + 1)
    return since
