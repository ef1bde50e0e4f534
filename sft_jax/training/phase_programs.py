"""The programs of a phase: its optimizer, its compiled steps, and the examples or features they read."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sft_jax.data.loader import Call, Loader, StepsPerCall
from sft_jax.models import HeadNetwork
from sft_jax.runtime.devices import AXIS
from sft_jax.training import optimizer, phases
from sft_jax.training.batch_norm import check_values
from sft_jax.training.evaluator import Evaluator
from sft_jax.training.experiment import Experiment
from sft_jax.training.features import feature_loaders, first_view, pick_view, recalibrate_batch_norm, solved_head
from sft_jax.training.phases import Phase
from sft_jax.training.staged_optimizer import by_beginning, make_staged_optimizer
from sft_jax.training.state import Arrays, TrainState
from sft_jax.training.step import StepMetrics, StepSettings, make_train_step
from sft_jax.training.steps import make_train_steps


class Variables(NamedTuple):
    """Weights to evaluate: parameters and batch statistics."""

    params: Arrays
    batch_stats: Arrays


class PhasePrograms:
    """The programs that the training loop runs in one phase; `schedule` replaces the configuration's schedule.

    Attributes:
      experiment: the experiment.
      phase: the epochs, and the parameters trained in them.
      optimizer: the optimizer of the trained parameters.
      since: trained parameter -> the step at which its training began.
      ready: whether `prepare` was called.
      train_steps: runs many steps in one call, see `steps.make_train_steps`; set by `prepare`.
      train_loader, validation_loader: loaders of images, or of features after `prepare` if the phase uses them.
      evaluate: evaluates parameters and batch statistics on `validation_loader`.

    Raises:
      UserError: the optimizer, batch norm or the loss does not support these settings.
    """

    train_steps: Callable

    def __init__(self, experiment: Experiment, phase: Phase, schedule: optax.Schedule | None = None):
        check_values(experiment)
        self.experiment, self.phase, self.ready = experiment, phase, False
        self.evaluate = experiment.evaluate
        self.train_loader, self.validation_loader = experiment.train_loader, experiment.validation_loader
        # Training on features has its own schedule; all other phases share one.
        origin = 0 if phase.on_features else min(other.first for other in experiment.phases if not other.on_features)
        self._origin = origin * experiment.steps_per_epoch
        self._schedule = self._make_schedule() if schedule is None else schedule
        since = phases.trained_since(experiment.phases, phase)
        # A given schedule starts at the first step of this phase.
        steps = experiment.steps_per_epoch if schedule is None else 0
        self.since = {name: epoch * steps for name, epoch in since.items()}
        self.optimizer = make_staged_optimizer(
            experiment.config.optimizer,
            lambda step: self._schedule(step - self._origin if schedule is None else step),
            self.since,
            architecture=experiment.network.architecture,
            clip_norm=experiment.config.regularization.clip_norm,
            multipliers=phase.multipliers,
        )

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of step `step`, counted from 0."""
        return float(self._schedule(step - self._origin))

    def first_state(self, params: Arrays, batch_stats: Arrays) -> TrainState:
        """Returns the state before the first step, and calls `prepare`.

        If the configuration asks for it, batch norm's statistics are recalibrated and the head is solved first.
        """
        experiment = self.experiment
        params, batch_stats = experiment.devices.replicate((params, batch_stats))
        if self._measures:
            batch_stats = self.measured(params, batch_stats)
        self.prepare(params, batch_stats)
        if self.phase.on_features:
            params = params | solved_head(self.experiment, self.train_loader.split, self.validation_loader.split)
        return experiment.devices.replicate_primary(self.new_state(params, batch_stats))

    def next_state(self, state: TrainState, before: "PhasePrograms") -> TrainState:
        """Returns the initial state of this phase, which follows that of `before`, and calls `prepare`.

        Parameters that were already trained keep their optimizer state, and the moving averages continue.
        """
        if self._measures and self.phase.size != before.phase.size:
            measured = self.measured(state.params, state.batch_stats)
            # The averages take them over unchanged, but as copies because the state is donated.
            averages = state.ema and {**state.ema, **jax.tree.map(jnp.copy, measured)}
            state = self.experiment.devices.replicate(state.replace(batch_stats=measured, ema=averages))
        self.prepare(state.params, state.batch_stats)
        if self.phase.start == before.phase.start:
            return state
        new = self.new_state(state.params, state.batch_stats)
        kept, fresh = (by_beginning(of.opt_state, programs.since) for of, programs in ((state, before), (new, self)))
        merged = fresh | kept
        return self.experiment.devices.replicate(
            new.replace(
                step=state.step,
                opt_state=merged if isinstance(new.opt_state, dict) else next(iter(merged.values())),
                ema=state.ema or new.ema,
                anchor=state.anchor,
            )
        )

    def fresh_state(self, state: TrainState, before: "PhasePrograms") -> TrainState:
        """Returns `next_state` with a freshly initialised optimizer."""
        followed = self.next_state(state, before)
        return self.experiment.devices.replicate(self.new_state(followed.params, followed.batch_stats))

    def new_state(self, params: Arrays, batch_stats: Arrays) -> TrainState:
        """Returns a state with the structure of this phase and a freshly initialised optimizer."""
        regularization = self.experiment.config.regularization
        return TrainState.create(
            params,
            batch_stats,
            self.optimizer,
            trained=self.phase.trained,
            ema=bool(regularization.ema) and not self.phase.on_features,
            anchored=[name for name in params if regularization.l2_sp and not self.experiment.network.is_head(name)],
        )

    @property
    def _measures(self) -> bool:
        return self.experiment.config.finetune.batch_norm == "recalibrate"

    def measured(self, params: Arrays, batch_stats: Arrays) -> Arrays:
        """Returns batch norm's statistics, recalibrated on the training images at the phase's size."""
        experiment, phase = self.experiment, self.phase
        preprocess = experiment.task.preprocess(experiment.config.data, phase.size)
        order = experiment.order(phase.first)
        return recalibrate_batch_norm(
            experiment.network, params, batch_stats, experiment.train_loader, preprocess, order
        )

    def prepare(self, params: Arrays, batch_stats: Arrays) -> None:
        """Compiles `train_steps`; if the phase is trained on features, computes these first with the given weights."""
        if self.phase.on_features:
            self.use_features(*feature_loaders(self.experiment, params, batch_stats))
        self.train_steps = self.compiled()
        self.ready = True

    def use_features(self, train: Loader, validation: Loader) -> None:
        """Makes the programs read features from these loaders instead of images."""
        self.train_loader, self.validation_loader = train, validation
        head = HeadNetwork(self.experiment.network)
        self.evaluate = Evaluator(head, self.experiment.task, [first_view], self.experiment.config.batch_size)

    def compiled(self) -> Callable:
        """Compiles `program` for all devices."""
        return self.train_loader.compile(self.program(), chunk_at=1, arguments=3, donate=(0,))

    def program(self) -> Callable:
        """Makes the per-device program of many steps, see `steps.make_train_steps`."""
        experiment, phase = self.experiment, self.phase
        network = HeadNetwork(experiment.network) if phase.on_features else experiment.network
        task = experiment.task.with_settings(experiment.config)
        step = make_train_step(network, task, self.optimizer, AXIS, self.settings())
        augment = pick_view if phase.on_features else task.augment(experiment.config.data, phase.size)
        return make_train_steps(step, augment, AXIS, experiment.devices.count)

    def run_steps(
        self,
        state: TrainState,
        order: np.ndarray,
        *,
        first: int = 0,
        steps_per_call: StepsPerCall,
        before_call: Callable[[TrainState, Call], None] = lambda state, call: None,
    ) -> Iterator[tuple[TrainState, Call, StepMetrics]]:
        """Trains; yields after each call the new state, the call and its metrics.

        On GPUs and TPUs a call is only queued when it is yielded, while the previous one is finished, so that they stay
        busy while the host reads the metrics of the previous call. On CPUs, whose cores the host needs as well, the
        temporary memory of two calls would overlap.

        Args:
          state: the state before the first step; it is donated.
          order: int32 [steps, batch], indices into `train_loader`.
          first: the first step to run.
          steps_per_call: sets the number of steps per call, from their timing.
          before_call: called before each call.
        """
        before: StepMetrics | None = None
        for call in self.train_loader.calls(order, first=first, steps_per_call=steps_per_call):
            before_call(state, call)
            with steps_per_call.timing(call.steps):
                state, metrics = self.train_steps(state, call.chunk, self.experiment.key)
                jax.block_until_ready(before if self.experiment.devices.apart else metrics)
            before = metrics
            yield state, call, metrics

    def candidates(self, state: TrainState) -> dict[str, Variables]:
        """Returns the weights to evaluate after an epoch: "raw" and, if there is a moving average, "ema"."""
        params = optimizer.eval_params(self.experiment.config.optimizer, state.opt_state, state.params)
        weights = {"raw": Variables(params, state.batch_stats)}
        if state.ema:
            weights["ema"] = Variables(*({key: state.ema[key] for key in part} for part in (params, state.batch_stats)))
        return weights

    def _make_schedule(self) -> optax.Schedule:
        experiment, phase, config = self.experiment, self.phase, self.experiment.config
        epochs = phase.stop if phase.on_features else config.epochs - self._origin // experiment.steps_per_epoch
        peak = config.optimizer.learning_rate
        if phase.head_only and config.finetune.head_learning_rate is not None:
            peak = config.finetune.head_learning_rate
        return optimizer.make_schedule(
            config.optimizer,
            epochs * experiment.steps_per_epoch,
            peak=peak,
            steps_per_epoch=experiment.steps_per_epoch,
            batch_size=config.batch_size,
        )

    def settings(self) -> StepSettings:
        """Returns the settings of the phase's training step."""
        config, phase = self.experiment.config, self.phase
        regularization, on_images = config.regularization, not phase.on_features
        return StepSettings(
            trained=phase.trained,
            batch_statistics=on_images and config.finetune.batch_norm == "train",
            mixup=regularization.mixup * on_images,
            cutmix=regularization.cutmix * on_images,
            l2_sp=regularization.l2_sp,
            sam_rho=config.optimizer.sam_rho,
            ema=regularization.ema,
            ema_start=self._origin,
            accumulate=config.optimizer.accumulate,
        )
