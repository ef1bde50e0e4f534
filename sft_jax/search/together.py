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
from sft_jax.data.loader import Pace
from sft_jax.runtime.devices import Devices
from sft_jax.runtime.estimate import compile_step
from sft_jax.tasks.classification import summarize
from sft_jax.tasks.monitor import rank
from sft_jax.training.experiment import Task
from sft_jax.training.phase_programs import Programs
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
      train_loss, val_loss, val_accuracy: of the epoch.
      score: the value of the configuration's monitor, as one that is better the higher it is.
      finite: False where a loss or a weight is no longer finite.
    """

    train_loss: float
    val_loss: float
    val_accuracy: float
    score: float
    finite: bool


class Together:
    """The training of trials whose configurations differ in nothing but the keys `traced`, of `TRACEABLE`.

    Compiled once for all of them and for all data sets of one size. With `folds` the validation images are those of a
    fold, which the trial must not have seen in any way.

    Attributes:
      traced: as given.
      class_weights: of the training loss.

    Raises:
      UserError: the configuration does not fit the data, or its initial weights do not fit the network.
    """

    def __init__(
        self, config: ConfigDict, traced: Collection[str], dataset: Dataset, devices: Devices, *, folds: bool = False
    ):
        self.traced = tuple(traced)
        self._config, self._devices = config, devices
        self._compiled: dict[tuple, Callable] = {}
        self._task = task = Task(config, dataset, devices, scored_on_validation=folds)
        # Those of the first fold serve all: a class has an image more or less in the others, and programs are kept.
        self.class_weights = task.class_weights
        self._weights = initial_weights(config, task.build, task.network, load_init(config), dataset.class_names)[:2]

    def epochs(
        self, configs: Sequence[ConfigDict], dataset: Dataset, after_piece: Callable[[int], None]
    ) -> Iterator[list[Epoch]]:
        """Trains `configs` on a data set, side by side; yields, epoch by epoch, what each of them came to.

        `after_piece` is told how many steps were done since it was last called, and may raise.
        """
        task = self.task(dataset)
        programs = self.programs(task, 0, configs)
        state = self.first_state(programs)
        pace = Pace()
        for epoch in range(self._config.epochs):
            if epoch >= programs.phase.stop:
                before = programs
                programs = self.programs(task, task.phases.index(before.phase) + 1, configs)
                state = programs.next_state(state, before)
            losses = []
            for piece in programs.train_feed.pieces(task.order(epoch), pace=pace):
                with pace.timing(piece.steps):
                    state, metrics = programs.train_steps(state, *piece.arguments, task.key)
                    losses.append(np.asarray(metrics.loss)[:, piece.rows])
                after_piece(piece.steps)
            yield [self._epoch(programs, state, index, loss) for index, loss in enumerate(np.hstack(losses))]

    def task(self, dataset: Dataset) -> Task:
        """The trials' task on a data set of the same size; all such share the network and its compiled evaluation."""
        task = copy.copy(self._task)
        task.dataset = dataset
        return task

    def programs(self, task: Task, phase: int, configs: Sequence[ConfigDict]) -> "SeveralPrograms":
        """Of the phase with number `phase`, for these trials."""
        flat = [flatten(config) for config in configs]
        settings = {key: np.array([values[key] for values in flat], np.float32) for key in self.traced}
        return SeveralPrograms(task, task.phases[phase], settings, len(configs), self._compiled)

    def first_state(self, programs: "SeveralPrograms") -> TrainState:
        """Before the first step, see `Programs.first_state`."""
        return programs.first_state(*self._weights)

    def _epoch(self, programs: Programs, state: TrainState, index: int, losses: np.ndarray) -> Epoch:
        """Of the trial `index`: scored as the training loop scores a run."""
        own = _mapped(lambda leaf: leaf[index], AXES, state)
        found = []
        for candidate in programs.candidates(own).values():
            params, batch_stats = self._devices.replicate(candidate)
            found.append(summarize(programs.evaluate(params, batch_stats, programs.validation_feed)))
        monitor = self._config.monitor
        chosen = max(found, key=lambda figures: rank(monitor, figures))
        weights = jax.device_get([*own.params.values(), *own.batch_stats.values()])
        finite = np.isfinite(losses).all() and all(np.isfinite(leaf).all() for leaf in weights)
        # One by one in double precision, as `Progress` adds them.
        train_loss = sum(losses.tolist()) / len(losses)
        return Epoch(train_loss, chosen["loss"], chosen["accuracy"], rank(monitor, chosen), bool(finite))


class SeveralPrograms(Programs):
    """`Programs` of several trials: states and metrics have an axis of trials in front, see `AXES`."""

    def __init__(self, task: Task, phase: Phase, settings: Settings, count: int, kept: dict[tuple, Callable]):
        """Of `count` trials with `settings`; `kept` has the compiled programs of the same configuration."""
        super().__init__(task, phase)
        self._settings, self._count, self._kept = task.devices.replicate(dict(settings)), count, kept

    def new_state(self, params: Arrays, batch_stats: Arrays) -> TrainState:
        """See `Programs`. The arrays are those of one network, or already have an axis of trials."""
        stacked = 0 if _stacked(params) else None

        def create(settings, params, batch_stats) -> TrainState:
            state = self._one(settings).new_state(params, batch_stats)
            # Of a later phase the caller keeps the anchor of the first.
            return state if stacked is None else state.replace(anchor={})

        return self._across(create, (0, stacked, stacked), AXES)(self._settings, params, batch_stats)

    def measured(self, params: Arrays, batch_stats: Arrays) -> Arrays:
        """See `Programs`. Of each trial its own, once they differ."""
        if not _stacked(params):
            return super().measured(params, batch_stats)
        found = []
        for index in range(self._count):
            own = tuple({key: leaf[index] for key, leaf in part.items()} for part in (params, batch_stats))
            found.append(super().measured(*self.task.devices.replicate(own)))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)

    def prepare(self, params: Arrays, batch_stats: Arrays) -> None:
        """See `Programs`. Features are made by what no trial has trained: the first one's weights serve."""
        if _stacked(params):
            params, batch_stats = ({key: leaf[0] for key, leaf in part.items()} for part in (params, batch_stats))
        super().prepare(params, batch_stats)

    def compiled(self) -> Callable:
        """See `Programs`."""
        key = (self.phase.first, self._count, self.train_feed.sharded)
        if key not in self._kept:
            sharded = (False, False, *self.train_feed.sharded, False, False, False)
            self._kept[key] = self.task.devices.compile(self._several, sharded=sharded, donate=(1,))
        self._program = self._kept[key]
        return functools.partial(self._program, self._settings)

    def bytes_needed(self, *arguments: Any) -> int | None:
        """Memory that a call of `train_steps` needs on each device, see `estimate.compile_step`."""
        return compile_step(self._program, self._settings, *arguments)

    def _several(self, settings: Mapping[str, jax.Array], state: TrainState, *arguments):
        def one(settings, state):
            return self._one(settings).program()(state, *arguments)

        return self._across(one, (0, AXES), (AXES, 0))(settings, state)

    def _one(self, settings: Mapping[str, jax.Array]) -> Programs:
        """The programs of one trial, whose settings may be traced."""
        task = copy.copy(self.task)
        task.config = with_traced(task.config, settings)
        return Programs(task, self.phase)

    def _across(self, function: Callable, in_axes: tuple, out_axes: Any) -> Callable:
        """`function` of one trial for all of them."""
        if self._count > 1:
            return jax.vmap(function, in_axes, out_axes)

        # Not vmap, for a single trial: this computes the same bits as a run without an axis of trials.
        def alone(*arguments):
            bare = _mapped(lambda leaf: leaf[0], in_axes, arguments)
            return _mapped(lambda leaf: leaf[None], out_axes, function(*bare))

        return alone


def _stacked(params: Arrays) -> bool:
    return params["fc.bias"].ndim > 1


def _mapped(change: Callable, axes: Any, values: Any) -> Any:
    """`change` of all leaves of `values` that have an axis of trials; `axes` as jax.vmap takes them."""

    def below(axis, part):
        return part if axis is None else jax.tree.map(change, part)

    return jax.tree.map(below, axes, values, is_leaf=lambda axis: axis is None)
