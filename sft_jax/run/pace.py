"""How long a run will take."""

from sft_jax.run.console import duration
from sft_jax.run.progress import Progress

# Seconds of steps after which their speed is extrapolated.
SECONDS = 10.0


class Pace:
    """Estimates the training time of a run from steps of its first epoch after the first call, which is slower."""

    def __init__(self, epochs: int, steps_per_epoch: int):
        self._epochs, self._steps_per_epoch = epochs, steps_per_epoch
        self._first: tuple[int, float] | None = None  # steps and seconds of the epoch with the first call
        self._told = False

    def line(self, progress: Progress) -> str | None:
        """Returns the estimate after a call of the first epoch, once; None before there is one, and afterwards."""
        if self._told or progress.rows:
            return None
        steps, seconds = progress.epoch_steps, progress.epoch_seconds
        if self._first is None:
            self._first = steps, seconds
        steps, seconds = steps - self._first[0], seconds - self._first[1]
        if not steps or seconds < SECONDS:
            return None
        self._told = True
        epoch = self._steps_per_epoch * seconds / steps
        return (
            f"time       about {duration(epoch)} per epoch, {duration(self._epochs * epoch)} in total, without "
            f"validation (from {steps} steps)"
        )
