"""How far a run has come: what a resumed run must know besides the arrays of its `TrainState`."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sft_jax.tasks import Monitor, Task


@dataclasses.dataclass
class Progress:
    """Saved as JSON with every checkpoint.

    Attributes:
      epoch: finished epochs.
      epoch_steps, epoch_loss, epoch_sums, epoch_seconds: steps done in the unfinished epoch, with the sums of their
        losses, those of `Task.train_sums`, and the seconds they took.
      best, best_epoch: the best value so far of what is monitored and its epoch, None before the first.
      seconds: training and validation so far, over all sessions.
      rows: the finished epochs as metrics.jsonl has them.
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

    def to_json(self) -> dict[str, Any]:
        """Returns the fields by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Progress":
        """Makes the progress of what `to_json` returned."""
        values = dict(values)
        if "epoch_correct" in values:  # of versions whose only task was classification
            values["epoch_sums"] = {"correct": values.pop("epoch_correct")}
        return cls(**values)

    def add(self, losses: np.ndarray, sums: Mapping[str, np.ndarray], seconds: float) -> None:
        """Counts further steps of the unfinished epoch: their mean losses [steps] and sums, each [steps]."""
        # One by one in double precision: the sum must not depend on how the epoch was cut into calls.
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
        beside: dict[str, Any] | None = None,
    ) -> bool:
        """Closes the epoch with its row of metrics, `beside` added; returns whether `monitor` is the best so far."""
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
                **(beside or {}),
            }
        )
        self.seconds += self.epoch_seconds + validation_seconds
        self.epoch_steps, self.epoch_loss, self.epoch_sums, self.epoch_seconds = 0, 0.0, {}, 0.0
        return is_best

    def outcome(self, task: type[Task] | Task, monitor: Monitor) -> dict[str, Any]:
        """Returns what results.json says of the training: best_epoch, epochs, steps, seconds, and of the best epoch the
        value of the task's own monitor, as best_val_accuracy, and of another `monitor`, as best_val_loss.
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
    """Whether `candidate` beats `best` (None: nothing yet). A tie keeps the earlier one; NaN and inf never win."""
    return math.isfinite(candidate) and (best is None or candidate > best)


def waited(values: Iterable[float]) -> int:
    """Epochs since the best of `values`, which are by epoch; their number where none is finite."""
    best, since = None, 0
    for value in values:
        is_best = better(value, best)
        best, since = (value, 0) if is_best else (best, since + 1)
    return since
