"""Trains trials that differ only in settings that a program takes as arguments, with vmap in one program.

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
# Axes of trials in a `TrainState` of several trials; the step and L2-SP's anchor are common to all.
AXES = TrainState(step=None, params=0, batch_stats=0, opt_state=0, ema=0, anchor=None)  # type: ignore[arg-type]


class Epoch(NamedTuple):
    """The result of an epoch of a trial.

    Attributes:
      train_loss, val_loss: losses of the epoch.
      main: validation value of the task's main metric.
      score: score of the monitored metric, see `Monitor.score`.
      finite: whether all losses and weights are finite.
    """

    train_loss: float
    val_loss: float
    main: float
    score: float
    finite: bool


class VmappedTrials:
    """The training of trials whose configurations differ only in the keys `traced`, of `TRACEABLE`.

    It is compiled once for all of them and for all datasets of the same size. With `folds` the validation split is a
    held-out fold, which must not influence training in any way.

    Attributes:
      traced: the argument.

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
        self._weights = initial_weights(experiment, load_init(config))[:2]

    def epochs(
        self, configs: Sequence[ConfigDict], dataset: Dataset, after_call: Callable[[int], None]
    ) -> Iterator[list[Epoch]]:
        """Trains `configs` on a dataset simultaneously; yields, epoch by epoch, their results.

        `after_call` gets the number of steps since its previous call, and may raise.
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
        """Returns the trials' experiment on a dataset of the same size.

        All of them share the network, its compiled evaluation and the task, and so the class weights of the first
        dataset, although class counts may differ by an image between folds.
        """
        experiment = copy.copy(self._experiment)
        experiment.dataset = dataset
        return experiment

    def programs(self, experiment: Experiment, phase: int, configs: Sequence[ConfigDict]) -> "VmappedPrograms":
        """Makes the programs of phase number `phase` for these trials."""
        flat = [flatten(config) for config in configs]
        settings = {key: np.array([values[key] for values in flat], np.float32) for key in self.traced}
        return VmappedPrograms(experiment, experiment.phases[phase], settings, len(configs), self._compiled)

    def first_state(self, programs: "VmappedPrograms") -> TrainState:
        """Returns the state before the first step, see `PhasePrograms.first_state`."""
        return programs.first_state(*self._weights)

    def _epoch(self, programs: PhasePrograms, state: TrainState, index: int, losses: np.ndarray) -> Epoch:
        """Evaluates trial `index` as the training loop evaluates a run."""
        own = _mapped(lambda leaf: leaf[index], AXES, state)
        figures = []
        for candidate in programs.candidates(own).values():
            params, batch_stats = self._devices.replicate(candidate)
            sums = programs.evaluate(params, batch_stats, programs.validation_loader)
            figures.append(self._experiment.task.summarize(sums))
        monitor = self._experiment.monitor
        chosen = max(figures, key=monitor.rank)
        weights = jax.device_get([*own.params.values(), *own.batch_stats.values()])
        finite = np.isfinite(losses).all() and all(np.isfinite(leaf).all() for leaf in weights)
        main = chosen[self._experiment.task.main().figure]
        # Added one by one in double precision, as in `Progress`.
        train_loss = sum(losses.tolist()) / len(losses)
        return Epoch(train_loss, chosen["loss"], main, monitor.rank(chosen), bool(finite))


class VmappedPrograms(PhasePrograms):
    """`PhasePrograms` of several trials: states and metrics have a leading axis of trials, see `AXES`."""

    def __init__(
        self, experiment: Experiment, phase: Phase, settings: Settings, count: int, kept: dict[tuple, Callable]
    ):
        """Makes the programs of `count` trials with `settings`; `kept` caches compiled ones of the configuration."""
        super().__init__(experiment, phase)
        self._settings, self._count, self._kept = experiment.devices.replicate(dict(settings)), count, kept

    def new_state(self, params: Arrays, batch_stats: Arrays) -> TrainState:
        """See `PhasePrograms`. The arrays are those of one network or have an axis of trials."""
        stacked = 0 if self._stacked(params) else None

        def create(settings, params, batch_stats) -> TrainState:
            state = self._one(settings).new_state(params, batch_stats)
            # In later phases the caller keeps the first phase's anchor.
            return state if stacked is None else state.replace(anchor={})

        return self._across(create, (0, stacked, stacked), AXES)(self._settings, params, batch_stats)

    def measured(self, params: Arrays, batch_stats: Arrays) -> Arrays:
        """See `PhasePrograms`. They are computed per trial if the weights differ."""
        if not self._stacked(params):
            return super().measured(params, batch_stats)
        statistics = []
        for index in range(self._count):
            own = tuple({key: leaf[index] for key, leaf in part.items()} for part in (params, batch_stats))
            statistics.append(super().measured(*self.experiment.devices.replicate(own)))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *statistics)

    def prepare(self, params: Arrays, batch_stats: Arrays) -> None:
        """See `PhasePrograms`. Features come from layers that no trial has trained, so the first trial's weights do."""
        if self._stacked(params):
            params, batch_stats = ({key: leaf[0] for key, leaf in part.items()} for part in (params, batch_stats))
        super().prepare(params, batch_stats)

    def compiled(self) -> Callable:
        """See `PhasePrograms`."""
        loader = self.train_loader
        key = (self.phase.first, self._count, loader.placement)
        if key not in self._kept:
            self._kept[key] = loader.compile(self._several, chunk_at=2, arguments=4, donate=(1,))
        self._program = self._kept[key]
        return functools.partial(self._program, self._settings)

    def bytes_needed(self, *arguments: Any) -> int | None:
        """Returns the memory per device that a call of `train_steps` needs, see `estimate.compile_step`."""
        return compile_step(self._program, self._settings, *arguments)

    def _stacked(self, params: Arrays) -> bool:
        """Returns whether the arrays have an axis of trials."""
        name, one = next(iter(self.experiment.network.params.items()))
        return params[name].ndim > one.ndim

    def _several(self, settings: Mapping[str, jax.Array], state: TrainState, *arguments):
        def one(settings, state):
            return self._one(settings).program()(state, *arguments)

        return self._across(one, (0, AXES), (AXES, 0))(settings, state)

    def _one(self, settings: Mapping[str, jax.Array]) -> PhasePrograms:
        """Makes the programs of one trial, whose settings may be traced."""
        experiment = copy.copy(self.experiment)
        experiment.config = with_traced(experiment.config, settings)
        return PhasePrograms(experiment, self.phase)

    def _across(self, function: Callable, in_axes: tuple, out_axes: Any) -> Callable:
        """Maps `function` over the trials."""
        if self._count > 1:
            return jax.vmap(function, in_axes, out_axes)

        # A single trial does not use vmap, so that it is bit-identical to a run.
        def alone(*arguments):
            bare = _mapped(lambda leaf: leaf[0], in_axes, arguments)
            return _mapped(lambda leaf: leaf[None], out_axes, function(*bare))

        return alone


def _mapped(change: Callable, axes: Any, values: Any) -> Any:
    """Applies `change` to all leaves of `values` that have an axis of trials; `axes` is as for jax.vmap."""

    def below(axis, part):
        return part if axis is None else jax.tree.map(change, part)

    return jax.tree.map(below, axes, values, is_leaf=lambda axis: axis is None)
