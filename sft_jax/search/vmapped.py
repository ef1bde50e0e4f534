"""Trials that differ only in settings that a program takes as arguments: trained side by side in one program.

The trials see the same images in the same order with the same augmentation, as separate runs with one seed do.
"""

import copy
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sft_jax.config import flatten
from sft_jax.config.traced import with_traced
from sft_jax.data import Dataset
from sft_jax.data.loader import StepsPerCall
from sft_jax.runtime.devices import Devices
from sft_jax.runtime.estimate import compile_step
from sft_jax.training.experiment import Experiment
from sft_jax.training.phase_programs import PhasePrograms
from sft_jax.training.phases import Phase
from sft_jax.training.start import initial_weights, load_init
from sft_jax.training.state import Arrays, TrainState

# Traced key -> float32 [trials].
Settings = Mapping[str, np.ndarray]
# Where a `TrainState` of several trials has an axis of trials: the step and what L2-SP pulls towards are common to all.
AXES = TrainState(step=None, params=0, batch_stats=0, opt_state=0, ema=0, anchor=None)  # type: ignore[arg-type]


class Epoch(NamedTuple):
    """What an epoch of one trial came to.

    Attributes:
      train_loss, val_loss: of the epoch.
      main: the validation split's value of the task's own monitor.
      score: of the configuration's monitor, see `Monitor.score`.
      finite: False where a loss or a weight is no longer finite.
    """

    train_loss: float
    val_loss: float
    main: float
    score: float
    finite: bool


class VmappedTrials:
    """The training of trials whose configurations differ in nothing but the keys `traced`, of `TRACEABLE`.

    Compiled once for all of them and for all data sets of one size. With `folds` the validation images are those of a
    fold, which the trial must not have seen in any way.

    Attributes:
      traced: as given.

    Raises:
      UserError: the configuration does not fit the data, or its initial weights do not fit the network.
    """

    def __init__(
        self, config: ConfigDict, traced: Collection[str], dataset: Dataset, devices: Devices, *, folds: bool = False
    ):
        self.traced = tuple(traced)
        self._config, self._devices = config, devices
        self._compiled: dict[tuple, Callable] = {}
        self._experiment = experiment = Experiment(config, dataset, devices, scored_on_validation=folds)
        self._weights = initial_weights(
            config, experiment.build, experiment.network, load_init(config), dataset.class_names
        )[:2]

    def epochs(
        self, configs: Sequence[ConfigDict], dataset: Dataset, after_call: Callable[[int], None]
    ) -> Iterator[list[Epoch]]:
        """Trains `configs` on a data set, side by side; yields, epoch by epoch, what each of them came to.

        `after_call` is told how many steps were done since it was last called, and may raise.
        """
        experiment = self.experiment(dataset)
        programs = self.programs(experiment, 0, configs)
        state = self.first_state(programs)
        steps_per_call = StepsPerCall()
        for epoch in range(self._config.epochs):
            if epoch >= programs.phase.stop:
                before = programs
                programs = self.programs(experiment, experiment.phases.index(before.phase) + 1, configs)
                state = programs.next_state(state, before)
            losses = []
            order = experiment.order(epoch)
            for trained, call, metrics in programs.run_steps(state, order, steps_per_call=steps_per_call):
                state = trained
                losses.append(np.asarray(metrics.loss)[:, call.rows])
                after_call(call.steps)
            yield [self._epoch(programs, state, index, loss) for index, loss in enumerate(np.hstack(losses))]

    def experiment(self, dataset: Dataset) -> Experiment:
        """Returns the trials' experiment on a data set of the same size; all such share the network, its compiled
        evaluation and the task. A class has an image more or less in other folds, but programs are kept: the weights of
        the classes are those of the first one.
        """
        experiment = copy.copy(self._experiment)
        experiment.dataset = dataset
        return experiment

    def programs(self, experiment: Experiment, phase: int, configs: Sequence[ConfigDict]) -> "VmappedPrograms":
        """Of the phase with number `phase`, for these trials."""
        flat = [flatten(config) for config in configs]
        settings = {key: np.array([values[key] for values in flat], np.float32) for key in self.traced}
        return VmappedPrograms(experiment, experiment.phases[phase], settings, len(configs), self._compiled)

    def first_state(self, programs: "VmappedPrograms") -> TrainState:
        """Before the first step, see `PhasePrograms.first_state`."""
        return programs.first_state(*self._weights)

    def _epoch(self, programs: PhasePrograms, state: TrainState, index: int, losses: np.ndarray) -> Epoch:
        """Of the trial `index`: scored as the training loop scores a run."""
        own = _mapped(lambda leaf: leaf[index], AXES, state)
        found = []
        for candidate in programs.candidates(own).values():
            params, batch_stats = self._devices.replicate(candidate)
            sums = programs.evaluate(params, batch_stats, programs.validation_loader)
            found.append(self._experiment.task.summarize(sums))
        monitor = self._experiment.monitor
        chosen = max(found, key=monitor.rank)
        weights = jax.device_get([*own.params.values(), *own.batch_stats.values()])
        finite = np.isfinite(losses).all() and all(np.isfinite(leaf).all() for leaf in weights)
        main = chosen[self._experiment.task.main().figure]
        # One by one in double precision, as `Progress` adds them.
        train_loss = sum(losses.tolist()) / len(losses)
        return Epoch(train_loss, chosen["loss"], main, monitor.rank(chosen), bool(finite))


class VmappedPrograms(PhasePrograms):
    """`PhasePrograms` of several trials: states and metrics have an axis of trials in front, see `AXES`."""

    def __init__(
        self, experiment: Experiment, phase: Phase, settings: Settings, count: int, kept: dict[tuple, Callable]
    ):
        """Of `count` trials with `settings`; `kept` has the compiled programs of the same configuration."""
        super().__init__(experiment, phase)
        self._settings, self._count, self._kept = experiment.devices.replicate(dict(settings)), count, kept

    def new_state(self, params: Arrays, batch_stats: Arrays) -> TrainState:
        """See `PhasePrograms`. The arrays are those of one network, or already have an axis of trials."""
        stacked = 0 if self._stacked(params) else None

        def create(settings, params, batch_stats) -> TrainState:
            state = self._one(settings).new_state(params, batch_stats)
            # Of a later phase the caller keeps the anchor of the first.
            return state if stacked is None else state.replace(anchor={})

        return self._across(create, (0, stacked, stacked), AXES)(self._settings, params, batch_stats)

    def measured(self, params: Arrays, batch_stats: Arrays) -> Arrays:
        """See `PhasePrograms`. Of each trial its own, once they differ."""
        if not self._stacked(params):
            return super().measured(params, batch_stats)
        found = []
        for index in range(self._count):
            own = tuple({key: leaf[index] for key, leaf in part.items()} for part in (params, batch_stats))
            found.append(super().measured(*self.experiment.devices.replicate(own)))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)

    def prepare(self, params: Arrays, batch_stats: Arrays) -> None:
        """See `PhasePrograms`. Features are made by what no trial has trained: the first one's weights serve."""
        if self._stacked(params):
            params, batch_stats = ({key: leaf[0] for key, leaf in part.items()} for part in (params, batch_stats))
        super().prepare(params, batch_stats)

    def compiled(self) -> Callable:
        """See `PhasePrograms`."""
        loader = self.train_loader
        key = (self.phase.first, self._count, loader.resident)
        if key not in self._kept:
            self._kept[key] = loader.compile(self._several, chunk_at=2, arguments=4, donate=(1,))
        self._program = self._kept[key]
        return functools.partial(self._program, self._settings)

    def bytes_needed(self, *arguments: Any) -> int | None:
        """Memory that a call of `train_steps` needs on each device, see `estimate.compile_step`."""
        return compile_step(self._program, self._settings, *arguments)

    def _stacked(self, params: Arrays) -> bool:
        """Whether the arrays of a network have an axis of trials."""
        name, one = next(iter(self.experiment.network.params.items()))
        return params[name].ndim > one.ndim

    def _several(self, settings: Mapping[str, jax.Array], state: TrainState, *arguments):
        def one(settings, state):
            return self._one(settings).program()(state, *arguments)

        return self._across(one, (0, AXES), (AXES, 0))(settings, state)

    def _one(self, settings: Mapping[str, jax.Array]) -> PhasePrograms:
        """The programs of one trial, whose settings may be traced."""
        experiment = copy.copy(self.experiment)
        experiment.config = with_traced(experiment.config, settings)
        return PhasePrograms(experiment, self.phase)

    def _across(self, function: Callable, in_axes: tuple, out_axes: Any) -> Callable:
        """`function` of one trial for all of them."""
        if self._count > 1:
            return jax.vmap(function, in_axes, out_axes)

        # Not vmap, for a single trial: this computes the same bits as a run without an axis of trials.
        def alone(*arguments):
            bare = _mapped(lambda leaf: leaf[0], in_axes, arguments)
            return _mapped(lambda leaf: leaf[None], out_axes, function(*bare))

        return alone


def _mapped(change: Callable, axes: Any, values: Any) -> Any:
    """`change` of all leaves of `values` that have an axis of trials; `axes` as jax.vmap takes them."""

    def below(axis, part):
        return part if axis is None else jax.tree.map(change, part)

    return jax.tree.map(below, axes, values, is_leaf=lambda axis: axis is None)
