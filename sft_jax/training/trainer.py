"""A training run: trains, evaluates and saves epoch by epoch, then tests the best checkpoint once."""

import contextlib
import time
from collections.abc import Sequence
from signal import Signals
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from sft_jax import data, tasks
from sft_jax.data.loader import Call, StepsPerCall
from sft_jax.errors import StoppedError, UserError
from sft_jax.models.weights import Weights
from sft_jax.run.console import Bar, Console, epoch_line, epoch_note
from sft_jax.run.folder import Run
from sft_jax.run.pace import Pace
from sft_jax.run.progress import Progress, waited
from sft_jax.runtime.devices import Devices
from sft_jax.runtime.estimate import compile_step
from sft_jax.runtime.signals import StopRequest
from sft_jax.training.experiment import Experiment, fingerprint
from sft_jax.training.finite import check_losses, check_state
from sft_jax.training.observer import Audience, Observer, Observers, nobody
from sft_jax.training.phase_programs import PhasePrograms, Variables
from sft_jax.training.plan import memory_line, plan_lines
from sft_jax.training.record import record_run
from sft_jax.training.resume import Saves
from sft_jax.training.start import Earlier, earlier, initial_weights, load_init, read_dataset
from sft_jax.training.state import TrainState
from sft_jax.training.step import StepMetrics


def train(
    config: ConfigDict,
    run: Run,
    *,
    resume: bool,
    console: Console,
    command: list[str],
    observers: Observers = nobody,
) -> dict[str, Any]:
    """Trains `config` in the folder of `run` and returns the contents of results.json.

    Args:
      config: a complete and valid configuration, as returned by `load_config`.
      run: the folder that everything is written to.
      resume: whether to continue an existing run, if there is one.
      console: receives the output.
      command: the command line, which is recorded.
      observers: makes the observers of the run.

    Raises:
      UserError: the configuration, data or weights are invalid; nothing was written.
      DivergedError: the loss is not finite; earlier checkpoints are kept.
      StoppedError: a signal stopped the run; the state is saved.
    """
    with contextlib.ExitStack() as opened, StopRequest() as stop:
        devices = Devices()
        # Checks come first, the fastest ones at the start; the folder is written only after they have passed.
        with devices.all_or_none():
            tasks.monitor_of(config)
            tasks.check_settings(config)
            watching = observers(config)
            run.check_use(config, resume=resume)
            devices.check_batch(config.batch_size, config.optimizer.accumulate)
        before = Earlier.from_json(run.on_primary(lambda: earlier(run).to_json())) if resume else Earlier()
        with devices.all_or_none():
            # A run with a checkpoint does not need init, which may have been deleted.
            init = None if before.saved else load_init(config)
            dataset = read_dataset(config, console, init=init, before=before, resuming=resume)
            common = fingerprint(config, dataset, tasks.make(config, dataset))
        devices.check_same(common | {"--resume": resume})
        trainer = Trainer(config, dataset, devices, run, console, stop, watching)
        opened.enter_context(run.claimed(config, resume=resume))
        for observer in watching:
            opened.enter_context(observer)
        trainer.begin(init, resume=resume, command=command)
        trainer.fit()
        return trainer.finish()


class Trainer:
    """A run within one process: its compiled programs, its state on the devices and its progress."""

    def __init__(
        self,
        config: ConfigDict,
        dataset: data.Dataset,
        devices: Devices,
        run: Run,
        console: Console,
        stop: StopRequest,
        observers: Sequence[Observer] = (),
    ):
        self.config, self.dataset, self.devices = config, dataset, devices
        self.run, self.console, self.stop = run, console, stop
        self.experiment = Experiment(config, dataset, devices)
        self.programs = PhasePrograms(self.experiment, self.experiment.phases[0])
        self.saves = Saves(self.experiment, run)
        self.audience = Audience(observers, console.line)
        self.steps_per_call = StepsPerCall()
        self.progress = Progress(learnt=self.experiment.task.learnt(None))
        self.state: TrainState
        self.pace = Pace(config.epochs, self.experiment.steps_per_epoch)
        self._compiled: PhasePrograms | None = None

    def begin(self, init: Weights | None, *, resume: bool, command: list[str]) -> None:
        """Restores the latest checkpoint if `resume` is set and there is one, otherwise starts from `init`.

        Prints the plan and records the run.
        """
        continued = self.saves.restore() if resume else None
        if continued is not None:
            self.progress, self.programs = continued.progress, continued.programs
            for line in continued.notices:
                self.console.line(line)
            where = "all epochs are done" if self._done() else f"in epoch {self.progress.epoch + 1}"
            start = f"resumed after step {int(continued.state.step)}, {where}"
            self.state = self.devices.replicate(continued.state)
        else:
            params, batch_stats, start = initial_weights(self.experiment, init)
            features = self.programs.phase.on_features
            with self.console.status("computing image features" if features else "preparing the weights"):
                self.state = self.programs.first_state(params, batch_stats)
        step = int(self.state.step)
        facts: dict[str, Any] = {"step": step, "resume": resume, "command": command}
        facts["licence"] = None if init is None else init.metadata.get("licence")
        self.run.on_primary(lambda: record_run(self.experiment, self.run, self.console, **facts))
        self.console.log_to(self.run.log_file)
        self.console.line(f"run        {self.run.folder}")
        for line in plan_lines(self.experiment, start):
            self.console.line(line)
        self.run.write_rows(self.progress.rows)
        self.audience.tell("begin", self.experiment, self.run, self.progress, self.console.line)

    def fit(self) -> None:
        """Trains, evaluates and saves up to epoch `config.epochs`. Raises DivergedError or StoppedError."""
        while not self._done():
            self._enter_phase()
            title = f"epoch {self.progress.epoch + 1}/{self.config.epochs}"
            with self.console.progress(title, self.experiment.steps_per_epoch, self.progress.epoch_steps) as bar:
                waiting = self._train_epoch(bar)
            start = time.perf_counter()
            with self.console.progress(f"{title}  validation", 1) as bar:
                weights, validation, extra = self._validate(bar)
            seconds = time.perf_counter() - start
            is_best = self.progress.finish_epoch(
                self.experiment.task,
                self.experiment.monitor,
                learning_rate=self.programs.learning_rate(int(self.state.step) - 1),
                batch_size=self.config.batch_size,
                validation=validation,
                validation_seconds=seconds,
                extra=extra,
            )
            check_state(self.state, epoch=self.progress.epoch, run=self.run)
            if is_best:  # saved before "latest", whose progress refers to it
                self._save("best", weights)
            self._save("latest", self.state)
            self.run.write_rows(self.progress.rows)
            self.audience.tell("epoch", self.progress)
            row = self.progress.rows[-1]
            left = (self.config.epochs - self.progress.epoch) * row["epoch_s"]
            task, monitor = self.experiment.task, self.experiment.monitor
            self.console.line(epoch_line(row, self.config.epochs, left, task, monitor, waiting))
            if is_best:
                self.audience.tell("best", weights, validation, self.progress)
        if self.progress.epoch < self.config.epochs:
            since = self.progress.epoch - self._waited()
            what = self.experiment.monitor.words
            self.console.line(
                f"stopped early: {what} has not improved since epoch {since} (regularization.early_stopping)"
            )

    def finish(self) -> dict[str, Any]:
        """Evaluates the best checkpoint on the test split, writes results.json and returns its contents.

        Raises StoppedError if a signal arrives before it is written.
        """
        best = self.run.checkpoints.restore_in_all("best")
        if best is None:
            what = self.experiment.monitor.words
            raise UserError(
                f"no epoch of {self.run.folder} had a finite {what}, so there is no best checkpoint; "
                f"try a lower --config.optimizer.learning_rate with a new --workdir"
            )
        experiment = self.experiment.as_learnt(Progress.from_json(best.metadata["progress"]).learnt)
        weights = Variables(*experiment.weights(best.arrays))
        figures = experiment.test(*weights, after_call=lambda done, steps: self._obey())
        results = figures | self.progress.outcome(self.experiment.task, self.experiment.monitor)
        self.run.write_results(results)
        self.audience.tell("end", weights, results, self.progress)
        page = self.run.report_file if self.run.report_file.exists() else self.run.folder
        self.console.conclude(
            f"best epoch {self.progress.best_epoch}: {self.experiment.task.conclusion(results)}; see {page}"
        )
        return results

    def _enter_phase(self) -> None:
        """Switches to the programs of the next epoch's phase if necessary, and prepares them and the state."""
        before = self.programs
        if self.progress.epoch >= before.phase.stop:
            self.programs = PhasePrograms(
                self.experiment, self.experiment.phases[self.experiment.phases.index(before.phase) + 1]
            )
            self.state = self.programs.next_state(self.state, before)
        elif not self.programs.ready:
            self.programs.prepare(self.state.params, self.state.batch_stats)

    def _train_epoch(self, bar: Bar) -> float:
        """Trains to the end of the epoch; returns the share of the time that was spent waiting for images."""
        loader = self.programs.train_loader
        waited, before = loader.waited, self.progress.epoch_seconds
        pending: tuple[Call, StepMetrics] | None = None
        self._clock = time.perf_counter()
        steps = self.programs.run_steps(
            self.state,
            self.experiment.order(self.progress.epoch),
            first=self.progress.epoch_steps,
            steps_per_call=self.steps_per_call,
            before_call=self._compile,
        )
        for self.state, call, metrics in steps:
            if pending is not None:
                self._account(*pending, bar)
            pending = (call, metrics)
            if self.devices.largest(bool(self.stop) or self.saves.overdue):
                self._account(*pending, bar)
                pending = None
                check_state(self.state, epoch=self.progress.epoch + 1, run=self.run)
                self._obey()
                self._save("latest", self.state)
                self._clock = time.perf_counter()
        if pending is not None:
            self._account(*pending, bar)
        return (loader.waited - waited) / max(self.progress.epoch_seconds - before, 1e-9)

    def _compile(self, state: TrainState, call: Call) -> None:
        """Compiles the phase's steps once and reports their memory; the time is not counted as training time."""
        if self._compiled is self.programs:
            return
        start, self._compiled = time.perf_counter(), self.programs
        program, key = self.programs.train_steps, self.experiment.key
        with self.console.status("compiling the training step"):
            variants = self.programs.train_loader.variants(call.chunk)
            needed = [compile_step(program, state, chunk, key) or 0 for chunk in variants]
        if max(needed):
            self.console.line(memory_line(max(needed), self.devices))
        self._clock += time.perf_counter() - start

    def _validate(self, bar: Bar) -> tuple[Variables, dict, dict]:
        """Evaluates the weights and, if there is one, their moving average.

        Returns:
          the better weights, their metrics, and additional metrics for the epoch's row.
        """

        def after_call(done: int, steps: int) -> None:
            bar.set(done, steps)
            # If stopped here, the epoch counts as unfinished; a resumed run starts with this evaluation.
            self._obey()

        candidates = self.programs.candidates(self.state)
        figures = {
            name: self.experiment.task.summarize(
                self.programs.evaluate(*weights, self.programs.validation_loader, after_call)
            )
            for name, weights in candidates.items()
        }
        task, monitor = self.experiment.task, self.experiment.monitor
        extra = {
            f"{name}_{each.name}": own[each.figure]
            for name, own in figures.items()
            for each in dict.fromkeys([task.main(), monitor])
            if len(figures) > 1
        }
        chosen = max(figures, key=lambda name: monitor.rank(figures[name]))
        return candidates[chosen], figures[chosen], extra

    def _account(self, call: Call, metrics: StepMetrics, bar: Bar) -> None:
        """Waits for a call's metrics and adds them, and the time since the previous ones, to the progress."""
        losses, sums = jax.tree.map(lambda values: np.asarray(values)[call.rows], tuple(metrics))
        first = self.progress.epoch * self.experiment.steps_per_epoch + self.progress.epoch_steps + 1
        check_losses(losses, first=first, epoch=self.progress.epoch + 1, run=self.run)
        now = time.perf_counter()
        self.progress.add(losses, sums, now - self._clock)
        self._clock = now
        task, steps = self.experiment.task, self.experiment.steps_per_epoch
        bar.advance(call.steps, epoch_note(self.progress, self.config, steps, task))
        if line := self.pace.line(self.progress):
            self.console.line(line)

    def _obey(self) -> None:
        """Saves the state and raises StoppedError if a signal has requested a stop."""
        number = self.devices.largest(self.stop.signal or 0)
        if not number:
            return
        self._save("latest", self.state)
        raise StoppedError(
            f"stopped by {Signals(int(number)).name} after step {int(self.state.step)}; the state is saved, "
            f"add --resume to the same command to continue"
        )

    def _save(self, name: str, what: Any) -> None:
        self.saves.save(name, int(self.state.step), what, self.progress)

    def _done(self) -> bool:
        """Returns whether all epochs are done, or early stopping applies."""
        patience = self.config.regularization.early_stopping
        return self.progress.epoch >= self.config.epochs or (patience is not None and self._waited() >= patience)

    def _waited(self) -> int:
        """Returns the epochs since the best one within the last phase; 0 in earlier phases, which never stop early."""
        monitor = self.experiment.monitor
        rows = self.progress.rows[self.experiment.phases[-1].first :]
        return waited(monitor.score(row[monitor.name]) for row in rows)
