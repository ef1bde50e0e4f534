"""A phase of a run made ready: its optimizer, its compiled steps, and the images or features they read."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sft_jax import data
from sft_jax.data.dataset import FeatureSplit
from sft_jax.data.loader import Feed
from sft_jax.models import Head
from sft_jax.runtime.devices import AXIS
from sft_jax.training import optimizer, phases
from sft_jax.training.batch_norm import check_values
from sft_jax.training.epoch import make_train_steps
from sft_jax.training.evaluator import Evaluator
from sft_jax.training.experiment import Task
from sft_jax.training.features import features, measured_statistics
from sft_jax.training.linear_probe import solve_head
from sft_jax.training.phases import HEAD, Phase
from sft_jax.training.staged_optimizer import by_beginning, make_staged_optimizer
from sft_jax.training.state import Arrays, TrainState
from sft_jax.training.step import StepSettings, make_train_step


class Weighted(NamedTuple):
    """Weights to evaluate: parameters and batch statistics."""

    params: Arrays
    batch_stats: Arrays


class Programs:
    """What the loop calls in one phase of a task, with `schedule` in place of the configuration's where it is given.

    Attributes:
      task: of which it is a phase.
      phase: which epochs, and what is trained in them.
      optimizer: of the parameters that are trained.
      since: by the names of these, the step from which on they are.
      ready: whether `prepare` was called.
      train_steps: many steps in one call, see `epoch.make_train_steps`; from `prepare` on.
      train_feed, validation_feed: what the steps and the evaluation read: images, or features after `prepare`.
      evaluate: of parameters and batch statistics on `validation_feed`.

    Raises:
      UserError: the optimizer, batch norm or the loss cannot work with these settings.
    """

    train_steps: Callable

    def __init__(self, task: Task, phase: Phase, schedule: optax.Schedule | None = None):
        check_values(task)
        self._class_weights = task.class_weights
        self.task, self.phase, self.ready = task, phase, False
        self.evaluate, self.train_feed, self.validation_feed = task.evaluate, task.train_feed, task.validation_feed
        # One schedule for the head alone; another one over all other epochs, whatever phases they are cut into.
        origin = 0 if phase.on_features else min(other.first for other in task.phases if not other.on_features)
        self._origin = origin * task.steps_per_epoch
        self._schedule = self._make_schedule() if schedule is None else schedule
        since = phases.trained_since(task.phases, phase)
        # Of another schedule the first step is its own first one.
        steps = task.steps_per_epoch if schedule is None else 0
        self.since = {name: epoch * steps for name, epoch in since.items()}
        self.optimizer = make_staged_optimizer(
            task.config.optimizer,
            lambda step: self._schedule(step - self._origin if schedule is None else step),
            self.since,
            clip_norm=task.config.regularization.clip_norm,
            multipliers=phase.multipliers,
        )

    def learning_rate(self, step: int) -> float:
        """Of the step after `step` others."""
        return float(self._schedule(step - self._origin))

    def first_state(self, params: Arrays, batch_stats: Arrays) -> TrainState:
        """The state before the first step. Makes the programs ready.

        Batch norm's statistics are measured and the head is solved first where the configuration asks for it.
        """
        task = self.task
        params, batch_stats = task.devices.replicate((params, batch_stats))
        if self._measures:
            batch_stats = self.measured(params, batch_stats)
        self.prepare(params, batch_stats)
        if self.phase.on_features:
            params = params | self._solved_head()
        return task.devices.replicate(self.new_state(params, batch_stats))

    def next_state(self, state: TrainState, before: "Programs") -> TrainState:
        """The state with which the phase follows that of `before`. Makes the programs ready.

        Parameters that go on being trained keep their part of the optimizer's state, and the moving averages go on.
        """
        if self._measures and self.phase.size != before.phase.size:
            measured = self.measured(state.params, state.batch_stats)
            # The average takes them over as they are. In arrays of its own: the state is donated.
            averages = state.ema and {**state.ema, **jax.tree.map(jnp.copy, measured)}
            state = self.task.devices.replicate(state.replace(batch_stats=measured, ema=averages))
        self.prepare(state.params, state.batch_stats)
        if self.phase.start == before.phase.start:
            return state
        new = self.new_state(state.params, state.batch_stats)
        kept, fresh = (by_beginning(of.opt_state, programs.since) for of, programs in ((state, before), (new, self)))
        merged = fresh | kept
        return self.task.devices.replicate(
            new.replace(
                step=state.step,
                opt_state=merged if isinstance(new.opt_state, dict) else next(iter(merged.values())),
                ema=state.ema or new.ema,
                anchor=state.anchor,
            )
        )

    def fresh_state(self, state: TrainState, before: "Programs") -> TrainState:
        """`next_state` with an optimizer that has seen no step."""
        followed = self.next_state(state, before)
        return self.task.devices.replicate(self.new_state(followed.params, followed.batch_stats))

    def new_state(self, params: Arrays, batch_stats: Arrays) -> TrainState:
        """A state of the phase's structure, its optimizer's part as before the first step."""
        regularization = self.task.config.regularization
        return TrainState.create(
            params,
            batch_stats,
            self.optimizer,
            trained=self.phase.trained,
            ema=bool(regularization.ema) and not self.phase.on_features,
            anchored=[name for name in params if regularization.l2_sp and not name.startswith(HEAD)],
        )

    @property
    def _measures(self) -> bool:
        return self.task.config.finetune.batch_norm == "recalibrate"

    def measured(self, params: Arrays, batch_stats: Arrays) -> Arrays:
        """Batch norm's statistics on the training images, of the size that the phase has."""
        task, phase = self.task, self.phase
        preprocess = data.make_preprocess(task.config.data, phase.size)
        return measured_statistics(
            task.network, params, batch_stats, task.train_feed, task.devices, preprocess, task.order(phase.first)
        )

    def prepare(self, params: Arrays, batch_stats: Arrays) -> None:
        """Makes `train_steps`; where the phase is trained on features, computes them with these weights."""
        if self.phase.on_features:
            self._read_features(params, batch_stats)
        self.train_steps = self.compiled()
        self.ready = True

    def compiled(self) -> Callable:
        """`program` on all devices."""
        sharded = (False, *self.train_feed.sharded, False, False, False)
        return self.task.devices.compile(self.program(), sharded=sharded, donate=(0,))

    def program(self) -> Callable:
        """One device's share of many steps, not compiled, see `epoch.make_train_steps`."""
        task, phase = self.task, self.phase
        step = make_train_step(
            Head(task.network) if phase.on_features else task.network, self.optimizer, AXIS, self.settings()
        )
        augment = pick_view if phase.on_features else data.make_augment(task.config.data, phase.size)
        return make_train_steps(step, augment, AXIS, task.devices.count)

    def candidates(self, state: TrainState) -> dict[str, Weighted]:
        """The weights to choose from after an epoch: "raw" and, where they are averaged, "ema"."""
        params = optimizer.evaluated(self.task.config.optimizer, state.opt_state, state.params)
        found = {"raw": Weighted(params, state.batch_stats)}
        if state.ema:
            found["ema"] = Weighted(*({key: state.ema[key] for key in part} for part in (params, state.batch_stats)))
        return found

    def _make_schedule(self) -> optax.Schedule:
        task, phase, config = self.task, self.phase, self.task.config
        epochs = phase.stop if phase.on_features else config.epochs - self._origin // task.steps_per_epoch
        peak = config.optimizer.learning_rate
        if phase.head_only and config.finetune.head_learning_rate is not None:
            peak = config.finetune.head_learning_rate
        return optimizer.make_schedule(
            config.optimizer,
            epochs * task.steps_per_epoch,
            peak=peak,
            steps_per_epoch=task.steps_per_epoch,
            batch_size=config.batch_size,
        )

    def settings(self) -> StepSettings:
        """Of the steps of the phase."""
        config, phase = self.task.config, self.phase
        regularization, on_images = config.regularization, not phase.on_features
        return StepSettings(
            trained=phase.trained,
            batch_statistics=on_images and config.finetune.batch_norm == "train",
            label_smoothing=regularization.label_smoothing,
            mixup=regularization.mixup * on_images,
            cutmix=regularization.cutmix * on_images,
            class_weights=self._class_weights,
            l2_sp=regularization.l2_sp,
            sam_rho=config.optimizer.sam_rho,
            ema=regularization.ema,
            ema_start=self._origin,
            accumulate=config.optimizer.accumulate,
        )

    def _read_features(self, params: Arrays, batch_stats: Arrays) -> None:
        task = self.task
        feeds = []
        for feed, mirrored in ((task.train_feed, task.config.data.flip), (task.validation_feed, False)):
            found = features(
                task.network,
                params,
                batch_stats,
                feed,
                task.devices,
                task.preprocess,
                task.config.batch_size,
                mirrored=mirrored,
            )
            feeds.append(Feed(FeatureSplit(found, feed.split.labels), task.devices))
        self.train_feed, self.validation_feed = feeds
        classes = len(task.dataset.class_names)
        self.evaluate = Evaluator(
            Head(task.network), lambda views: views[:, 0], task.devices, classes, task.config.batch_size
        )

    def _solved_head(self) -> Arrays:
        train, validation = self.train_feed.split, self.validation_feed.split
        assert isinstance(train, FeatureSplit)
        assert isinstance(validation, FeatureSplit)
        chosen_on = None if self.task.scored_on_validation else (validation.images[:, 0], validation.labels)
        kernel, bias = solve_head(train.images, train.labels, len(self.task.dataset.class_names), chosen_on)
        return {"fc.kernel": jnp.asarray(kernel), "fc.bias": jnp.asarray(bias)}


def pick_view(views: jax.Array, key: jax.Array, first: jax.Array | int, total: int) -> jax.Array:
    """One of the views of each image at random: features [share, views, channels] -> [share, channels].

    For `key`, `first` and `total` see `data.augment`.
    """
    draws = jax.random.randint(jax.random.fold_in(key, 0), (total,), 0, views.shape[1])
    own = lax.dynamic_slice_in_dim(draws, first, len(views))
    return jnp.take_along_axis(views, own[:, None, None], axis=1)[:, 0]
