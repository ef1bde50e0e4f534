"""The training run: prepare, then epoch by epoch train, evaluate and save, then score the best checkpoint once."""

import contextlib
import time
from signal import Signals
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from sft_jax import data
from sft_jax.data.loader import Pace, Piece
from sft_jax.errors import StoppedError, UserError
from sft_jax.models.weights import Weights
from sft_jax.report.reporter import Reporter
from sft_jax.run.console import Bar, Console, epoch_note, speed_line
from sft_jax.run.folder import Run
from sft_jax.run.loggers import Logs
from sft_jax.run.progress import Progress, waited
from sft_jax.runtime import processes
from sft_jax.runtime.devices import Devices
from sft_jax.runtime.estimate import compile_step
from sft_jax.runtime.signals import StopRequest
from sft_jax.tasks.classification import summarize
from sft_jax.tasks.monitor import MONITORS, rank, score
from sft_jax.training.experiment import Task, facts
from sft_jax.training.finite import check_losses, check_state
from sft_jax.training.phase_programs import Programs, Weighted
from sft_jax.training.plan import change_lines, memory_line, plan_lines
from sft_jax.training.resume import Saves
from sft_jax.training.start import Earlier, earlier, initial_weights, load_init, read_dataset
from sft_jax.training.state import TrainState, from_arrays, to_arrays
from sft_jax.training.step import StepMetrics

# Steps of a first epoch are timed for this long before they are taken for all others.
SPEED_SECONDS = 3.0


def train(config: ConfigDict, run: Run, *, resume: bool, console: Console, command: list[str]) -> dict[str, Any]:
    """Runs `config` in the folder of `run` to its end and returns what results.json holds.

    Args:
      config: complete and checked, as `load_config` gives it.
      run: where everything is written.
      resume: continue the run that is there, if there is one.
      console: told what happens.
      command: the command line, for the record.

    Raises:
      UserError: something given is wrong; nothing was written.
      DivergedError: the loss is not finite; the checkpoints before it are kept.
      StoppedError: a signal came; the state is saved.
    """
    with contextlib.ExitStack() as opened, StopRequest() as stop:
        # What can fail goes first, the quickest of it before the rest; the folder is written to when all is well.
        with processes.together():
            logs = Logs(config.logging)
            if processes.is_first():
                run.check_use(config, resume=resume)
            devices = Devices()
            devices.check_batch(config.batch_size, config.optimizer.accumulate)
        before = Earlier.from_json(processes.in_first(lambda: earlier(run).to_json())) if resume else Earlier()
        with processes.together():
            # What a checkpoint goes on from needs no other weights, which may be gone.
            init = None if before.saved else load_init(config)
            dataset = read_dataset(config, console, before=before, resuming=resume)
            common = facts(config, dataset)
        processes.check_same(common | {"--resume": resume})
        trainer = Trainer(config, dataset, devices, run, console, stop, logs)
        processes.in_first(lambda: opened.enter_context(run.claimed(config, resume=resume)))
        opened.enter_context(logs)
        trainer.begin(init, resume=resume, command=command)
        trainer.fit()
        return trainer.finish()


class Trainer:
    """One run in one of its processes: its compiled programs, its state on the devices and its progress."""

    def __init__(
        self,
        config: ConfigDict,
        dataset: data.Dataset,
        devices: Devices,
        run: Run,
        console: Console,
        stop: StopRequest,
        logs: Logs | None = None,
    ):
        self.config, self.dataset, self.devices = config, dataset, devices
        self.run, self.console, self.stop = run, console, stop
        self.task = Task(config, dataset, devices)
        self.programs = Programs(self.task, self.task.phases[0])
        self.saves = Saves(self.task, run)
        self.reporter = Reporter(self.task, run, console, logs)
        self.pace = Pace()
        self.progress = Progress()
        self.state: TrainState
        self._compiled: Programs | None = None

    def begin(self, init: Weights | None, *, resume: bool, command: list[str]) -> None:
        """Continues the run's latest checkpoint if there is one and `resume` is set, else starts from `init`; says what
        will be done, and records the run.
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
            params, batch_stats, start = initial_weights(
                self.config, self.task.build, self.task.network, init, self.dataset.class_names
            )
            features = self.programs.phase.on_features
            with self.console.status("computing features of the images" if features else "preparing the weights"):
                state = self.programs.first_state(params, batch_stats)
            if processes.are_several():
                # Another machine may have rounded otherwise.
                state = self.devices.replicate(from_arrays(state, processes.handed_out(to_arrays(state))))
            self.state = state
        processes.in_first(lambda: self._record(resume=resume, command=command))
        self.console.log_to(self.run.log_file)
        self.console.line(f"run        {self.run.folder}")
        for line in plan_lines(self.task, start):
            self.console.line(line)
        self.reporter.begin(self.progress)

    def _record(self, *, resume: bool, command: list[str]) -> None:
        """Writes config.json; of a run that goes on under another configuration, says what that changes."""
        facts: dict[str, Any] = {"devices": str(self.devices), "command": command}
        if self.config.regularization.class_weights not in ("none", "balanced"):
            facts["class_weights"] = self.task.class_weights  # of a file, which may change
        if not self.run.exists():
            if resume:
                self.console.line(f"nothing to resume in {self.run.folder}: a fresh start")
            if self.dataset.record is not None:
                self.run.write_dataset_record(self.dataset.record)
            self.run.write_config(self.config, **facts)
            return
        before, weights = self.run.config(), self.run.record().get("class_weights")
        if weights is not None and tuple(weights) != self.task.class_weights:
            raise UserError(
                f"regularization.class_weights={self.config.regularization.class_weights}: these are not the weights "
                f"with which {self.run.folder} began; put those back, or begin anew with a fresh --workdir"
            )
        kept = self.run.update_config(self.config, **facts)
        if kept is not None:
            for line in change_lines(self.task, before, int(self.state.step)):
                self.console.line(line)
            self.console.line(f"           {self.run.config_file} says so now; the one before is kept as {kept.name}")

    def fit(self) -> None:
        """Trains, evaluates and saves until `config.epochs` epochs are done. Raises DivergedError, StoppedError."""
        while not self._done():
            self._enter_phase()
            title = f"epoch {self.progress.epoch + 1}/{self.config.epochs}"
            with self.console.progress(title, self.task.steps_per_epoch, self.progress.epoch_steps) as bar:
                self._train_epoch(bar)
            start = time.perf_counter()
            with self.console.progress(f"{title}  validation", 1) as bar:
                weights, validation, beside = self._validate(bar)
            seconds = time.perf_counter() - start
            is_best = self.progress.finish_epoch(
                learning_rate=self.programs.learning_rate(int(self.state.step) - 1),
                batch_size=self.config.batch_size,
                validation=validation,
                validation_seconds=seconds,
                beside=beside,
                monitor=self.config.monitor,
            )
            check_state(self.state, epoch=self.progress.epoch, run=self.run)
            if is_best:  # before the latest, whose progress says that it exists
                self._save("best", weights)
            self._save("latest", self.state)
            self.reporter.epoch(self.progress)
            if is_best:
                self.reporter.best(*weights, validation, self.progress)
        if self.progress.epoch < self.config.epochs:
            since = self.progress.epoch - self._waited()
            what = MONITORS[self.config.monitor]
            self.console.line(f"stopped early: no better {what} since epoch {since}, see regularization.early_stopping")

    def finish(self) -> dict[str, Any]:
        """Scores the best checkpoint on the test split, writes results.json and returns what it holds.

        Raises StoppedError as long as nothing of it is written.
        """
        best = self.saves.read("best")
        if best is None:
            what = MONITORS[self.config.monitor]
            raise UserError(f"no epoch of {self.run.folder} had a finite {what}: there is no best checkpoint")
        weights = self.task.weights(best.arrays)
        figures = self.task.test(*weights, after_piece=lambda done, steps: self._obey())
        return self.reporter.finish(*weights, figures, self.progress)

    def _enter_phase(self) -> None:
        """Makes the programs of the next epoch's phase ready, and the state theirs."""
        before = self.programs
        if self.progress.epoch >= before.phase.stop:
            self.programs = Programs(self.task, self.task.phases[self.task.phases.index(before.phase) + 1])
            self.state = self.programs.next_state(self.state, before)
        elif not self.programs.ready:
            self.programs.prepare(self.state.params, self.state.batch_stats)

    def _train_epoch(self, bar: Bar) -> None:
        order = self.task.order(self.progress.epoch)
        pending: tuple[Piece, StepMetrics] | None = None
        clock = time.perf_counter()
        for piece in self.programs.train_feed.pieces(order, first=self.progress.epoch_steps, pace=self.pace):
            clock += self._compile(piece)
            with self.pace.timing(piece.steps):
                self.state, metrics = self.programs.train_steps(self.state, *piece.arguments, self.task.key)
                # The call above only queues the work: the devices are never idle while the host reads the last figures.
                if pending is not None:
                    clock = self._account(*pending, clock, bar)
            pending = (piece, metrics)
            if any(processes.largest(bool(self.stop), self.saves.overdue)):
                clock, pending = self._account(*pending, clock, bar), None
                check_state(self.state, epoch=self.progress.epoch + 1, run=self.run)
                self._obey()
                self._save("latest", self.state)
                clock = time.perf_counter()
        if pending is not None:
            self._account(*pending, clock, bar)

    def _compile(self, piece: Piece) -> float:
        """Compiles the phase's steps, unless that is done, and says what memory they need; returns the seconds."""
        if self._compiled is self.programs:
            return 0.0
        start, self._compiled = time.perf_counter(), self.programs
        with self.console.status("compiling the training step"):
            needed = compile_step(self.programs.train_steps, self.state, *piece.arguments, self.task.key)
        if needed is not None:
            self.console.line(memory_line(needed, self.devices))
        return time.perf_counter() - start

    def _validate(self, bar: Bar) -> tuple[Weighted, dict, dict]:
        """Evaluates the weights and, where there is one, their moving average.

        Returns:
          The better ones, their figures, and the further figures of the epoch's row.
        """

        def after_piece(done: int, steps: int) -> None:
            bar.set(done, steps)
            # The epoch counts as unfinished then; a resumed run comes back to this evaluation at once.
            self._obey()

        candidates = self.programs.candidates(self.state)
        figures = {
            name: summarize(self.programs.evaluate(*weights, self.programs.validation_feed, after_piece))
            for name, weights in candidates.items()
        }
        several = figures if len(figures) > 1 else {}
        monitor = self.config.monitor
        beside = {
            f"{name}_{figure}": found[figure.removeprefix("val_")]
            for name, found in several.items()
            for figure in dict.fromkeys(["val_accuracy", monitor])
        }
        chosen = max(figures, key=lambda name: rank(monitor, figures[name]))
        return candidates[chosen], figures[chosen], beside

    def _account(self, piece: Piece, metrics: StepMetrics, clock: float, bar: Bar) -> float:
        """Waits for a piece, counts its figures, and returns the time."""
        losses, correct = (np.asarray(values)[piece.rows] for values in metrics)
        first = self.progress.epoch * self.task.steps_per_epoch + self.progress.epoch_steps + 1
        check_losses(losses, first=first, epoch=self.progress.epoch + 1, run=self.run)
        now, before = time.perf_counter(), self.progress.epoch_seconds
        self.progress.add(losses, correct, now - clock)
        bar.advance(piece.steps, epoch_note(self.progress, self.config, self.task.steps_per_epoch))
        if not self.progress.rows and before < SPEED_SECONDS <= self.progress.epoch_seconds:
            self.console.line(speed_line(self.progress, self.config, self.task.steps_per_epoch))
        return now

    def _obey(self) -> None:
        """Saves and raises StoppedError where a stop was asked for."""
        (number,) = processes.largest(self.stop.signal or 0)
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
        """Whether no epoch is left, or enough of them brought nothing."""
        patience = self.config.regularization.early_stopping
        return self.progress.epoch >= self.config.epochs or (patience is not None and self._waited() >= patience)

    def _waited(self) -> int:
        """Epochs since the best one of the last phase; 0 before it: no phase ends early for those that follow."""
        monitor = self.config.monitor
        return waited(score(monitor, row[monitor]) for row in self.progress.rows[self.task.phases[-1].first :])
