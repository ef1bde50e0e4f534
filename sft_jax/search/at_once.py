"""Decides how many trials to train at once, by timing, because it depends on the device whether that is faster."""

import dataclasses
import time
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from sft_jax.data import Dataset
from sft_jax.data.loader import Call, StepsPerCall
from sft_jax.search.vmapped import VmappedTrials

# Limited because a sampler chooses all of them before the first is done, so that they cannot learn from one another.
MOST = 8
# Maximum time relative to sequential training; a smaller gain is not worth results that equal a run's only up to
# rounding.
WORTHWHILE = 0.9
# Maximum fraction of the device's free memory.
MEMORY_FRACTION = 0.8
# Seconds per timed call, calls that first adapt its number of steps, and timed calls, alternating between one trial and
# several.
CALL_S, WARM_UP, TURNS = 0.2, 3, 5


@dataclasses.dataclass(frozen=True)
class AtOnce:
    """How many trials to train at once, and why.

    Attributes:
      count: trials per program.
      reason: explanation for the user.
      measured: number of simultaneous trials that was timed; 1 if nothing was timed.
      alone_s, together_s: seconds per step of one trial and of `measured` trials at once; None if nothing was timed.
    """

    count: int
    reason: str
    measured: int = 1
    alone_s: float | None = None
    together_s: float | None = None

    def one_by_one(self, seconds: float, steps: int) -> float | None:
        """Estimates the time that trials, which took `seconds`, would have taken sequentially; None if not measured.

        `steps` is the total over all trials. It is a lower bound if features or statistics are computed first, because
        that is shared by trials that train at once.
        """
        if self.count == 1 or self.alone_s is None or self.together_s is None:
            return None
        return seconds + steps * (self.alone_s - self.together_s / self.measured)


def choose(together: VmappedTrials, configs: Sequence[ConfigDict], dataset: Dataset, *, asked: int | None) -> AtOnce:
    """Times one trial and several at once, and chooses the faster option.

    Args:
      together: the training of the trials.
      configs: as many as may train at once; two or more.
      dataset: the dataset to train on.
      asked: the number requested by the user; None to decide.
    """
    experiment = together.experiment(dataset)
    phase = len(experiment.phases) - 1  # with several phases, the last one trains the whole network
    one = _Timed(together, configs[:1], dataset, phase)
    fitting = len(configs)
    if asked is None and one.bytes_needed:
        fitting = min(fitting, max(1, int(MEMORY_FRACTION * experiment.devices.free_bytes() / one.bytes_needed)))
    if fitting == 1:
        return AtOnce(1, "two do not fit into the free memory")
    several = _Timed(together, configs[:fitting], dataset, phase)
    for _ in range(TURNS):
        one.call()
        several.call()
    alone, at_once = (float(np.median(timed.seconds)) for timed in (one, several))
    figures = (
        f"{1e3 * at_once / fitting:.3g} ms per step and trial with {fitting} at once, {1e3 * alone:.3g} ms with one, "
        f"on {experiment.devices}"
    )
    if fitting < len(configs):
        figures += "; no more fit into the free memory"
    if asked is not None:
        return AtOnce(fitting, f"set by --at-once; {figures}", fitting, alone, at_once)
    worthwhile = at_once <= WORTHWHILE * fitting * alone
    return AtOnce(fitting if worthwhile else 1, figures, fitting, alone, at_once)


class _Timed:
    """Runs and times a few steps of some trials."""

    def __init__(self, together: VmappedTrials, configs: Sequence[ConfigDict], dataset: Dataset, phase: int):
        experiment = together.experiment(dataset)
        programs = together.programs(experiment, phase, configs)
        self._state = together.first_state(programs)
        self._programs, self._order, self._key = programs, experiment.order(epoch=0), experiment.key
        self._steps_per_call = StepsPerCall(CALL_S)
        self.bytes_needed = programs.bytes_needed(self._state, self._next().chunk, self._key)
        self.seconds: list[float] = []
        for _ in range(WARM_UP):
            self.call()
        self.seconds.clear()

    def call(self) -> None:
        """Runs and times one call."""
        call = self._next()
        start = time.perf_counter()
        with self._steps_per_call.timing(call.steps):
            self._state, metrics = self._programs.train_steps(self._state, call.chunk, self._key)
            jax.block_until_ready(metrics)
        self.seconds.append((time.perf_counter() - start) / call.steps)

    def _next(self) -> Call:
        return next(self._programs.train_loader.calls(self._order, steps_per_call=self._steps_per_call))
