"""How many trials train side by side: measured, since it depends on the device whether that is faster."""

import dataclasses
import time
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from sft_jax.data import Dataset
from sft_jax.data.loader import Call, StepsPerCall
from sft_jax.search.vmapped import VmappedTrials

# More at once would learn less from one another: a sampler chooses all of them before the first is done.
MOST = 8
# Several at once have to take this share of the time of one after the other, or less: results that equal a run's up to
# rounding only are not worth a gain that is hardly one.
WORTHWHILE = 0.9
# Of the memory that is free on the device.
MEMORY_SHARE = 0.8
# A call that is timed takes about so long, after some that find out its number of steps; one and several take turns.
CALL_S, WARM_UP, TURNS = 0.2, 3, 5


@dataclasses.dataclass(frozen=True)
class AtOnce:
    """How many trials train at once, and why.

    Attributes:
      count: trials in one program.
      reason: in words.
      measured: trials at once that were timed; 1 where nothing was.
      alone_s, together_s: seconds a step, of one trial and of `measured` at once; None where nothing was timed.
    """

    count: int
    reason: str
    measured: int = 1
    alone_s: float | None = None
    together_s: float | None = None

    def one_by_one(self, seconds: float, steps: int) -> float | None:
        """What trials that took `seconds` would have taken one after the other; None where that was not measured.

        `steps` are those of all trials together. It would be more where features or statistics are computed first: once
        for all that train at once, once for each of the others.
        """
        if self.count == 1 or self.alone_s is None or self.together_s is None:
            return None
        return seconds + steps * (self.alone_s - self.together_s / self.measured)


def choose(together: VmappedTrials, configs: Sequence[ConfigDict], dataset: Dataset, *, asked: int | None) -> AtOnce:
    """Times one trial and several at once, and takes the faster way.

    Args:
      together: of the trials.
      configs: as many as may train at once; two or more.
      dataset: to train on.
      asked: the number the user wants; None to decide.
    """
    experiment = together.experiment(dataset)
    phase = len(experiment.phases) - 1  # the one without frozen parts, where there are several
    one = _Timed(together, configs[:1], dataset, phase)
    fitting = len(configs)
    if asked is None and one.bytes_needed:
        fitting = min(fitting, max(1, int(MEMORY_SHARE * experiment.devices.free_bytes() / one.bytes_needed)))
    if fitting == 1:
        return AtOnce(1, "two would not fit into the memory that is free")
    several = _Timed(together, configs[:fitting], dataset, phase)
    for _ in range(TURNS):
        one.call()
        several.call()
    alone, at_once = (float(np.median(timed.seconds)) for timed in (one, several))
    figures = (
        f"a step of a trial takes {1e3 * at_once / fitting:.3g} ms with {fitting} at once, {1e3 * alone:.3g} ms alone "
        f"on {experiment.devices}"
    )
    if fitting < len(configs):
        figures += "; no more fit into the memory that is free"
    if asked is not None:
        return AtOnce(fitting, f"as --at-once says; {figures}", fitting, alone, at_once)
    worthwhile = at_once <= WORTHWHILE * fitting * alone
    return AtOnce(fitting if worthwhile else 1, figures, fitting, alone, at_once)


class _Timed:
    """A few steps of some trials, called again and again."""

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
        """One call, timed."""
        call = self._next()
        start = time.perf_counter()
        with self._steps_per_call.timing(call.steps):
            self._state, metrics = self._programs.train_steps(self._state, call.chunk, self._key)
            jax.block_until_ready(metrics)
        self.seconds.append((time.perf_counter() - start) / call.steps)

    def _next(self) -> Call:
        return next(self._programs.train_loader.calls(self._order, steps_per_call=self._steps_per_call))
