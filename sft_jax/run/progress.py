"""How far a run has come: what a resumed run must know besides the arrays of its `TrainState`."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from sft_jax.tasks.monitor import score


@dataclasses.dataclass
class Progress:
    """Saved as JSON with every checkpoint.

    Attributes:
      epoch: finished epochs.
      epoch_steps, epoch_loss, epoch_correct, epoch_seconds: steps done in the unfinished epoch, with the sums of their
        losses and correct predictions and the seconds they took.
      best, best_epoch: the best value so far of what is monitored and its epoch, None before the first.
      seconds: training and validation so far, over all sessions.
      rows: the finished epochs as metrics.jsonl has them.
    """

    epoch: int = 0
    epoch_steps: int = 0
    epoch_loss: float = 0.0
    epoch_correct: int = 0
    epoch_seconds: float = 0.0
    best: float | None = None
    best_epoch: int | None = None
    seconds: float = 0.0
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The fields by name: the arguments of an equal `Progress`."""
        return dataclasses.asdict(self)

    def add(self, losses: np.ndarray, correct: np.ndarray, seconds: float) -> None:
        """Counts further steps of the unfinished epoch: their mean losses [steps] and correct predictions [steps]."""
        # One by one in double precision: the sum must not depend on how the epoch was cut into calls.
        for loss in losses.tolist():
            self.epoch_loss += loss
        self.epoch_correct += int(correct.sum())
        self.epoch_steps += len(losses)
        self.epoch_seconds += seconds

    def finish_epoch(
        self,
        *,
        learning_rate: float,
        batch_size: int,
        validation: dict[str, Any],
        validation_seconds: float,
        beside: dict[str, Any] | None = None,
        monitor: str = "val_accuracy",
    ) -> bool:
        """Closes the epoch with its row of metrics, `beside` added; returns whether `monitor` is the best so far."""
        self.epoch += 1
        value = validation[monitor.removeprefix("val_")]
        is_best = better(score(monitor, value), None if self.best is None else score(monitor, self.best))
        if is_best:
            self.best, self.best_epoch = value, self.epoch
        images = self.epoch_steps * batch_size
        self.rows.append(
            {
                "epoch": self.epoch,
                "step": self.epoch * self.epoch_steps,
                "learning_rate": learning_rate,
                "train_loss": self.epoch_loss / self.epoch_steps,
                "train_accuracy": self.epoch_correct / images,
                "val_loss": validation["loss"],
                "val_accuracy": validation["accuracy"],
                "val_balanced_accuracy": validation["balanced_accuracy"],
                "val_macro_f1": validation["macro_f1"],
                "best": self.best,
                "train_images_per_s": images / self.epoch_seconds,
                "epoch_s": self.epoch_seconds + validation_seconds,
                **(beside or {}),
            }
        )
        self.seconds += self.epoch_seconds + validation_seconds
        self.epoch_steps, self.epoch_loss, self.epoch_correct, self.epoch_seconds = 0, 0.0, 0, 0.0
        return is_best

    def outcome(self, monitor: str = "val_accuracy") -> dict[str, Any]:
        """What results.json says of the training: best_epoch, best_val_accuracy, epochs, steps, seconds.

        The accuracy is that of the best epoch; of another `monitor` there is its best value too, as best_val_loss.
        """
        accuracy = self.rows[self.best_epoch - 1]["val_accuracy"] if self.best_epoch else None
        return {
            "best_epoch": self.best_epoch,
            f"best_{monitor}": self.best,
            "best_val_accuracy": accuracy,
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
