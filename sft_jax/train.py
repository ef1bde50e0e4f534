"""The training run: prepare, then epoch by epoch train, evaluate and save, then score the best checkpoint once."""

import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from sft_jax import data, models, optim
from sft_jax.data.order import epoch_order
from sft_jax.epoch import make_train_steps
from sft_jax.errors import DivergedError, StoppedError, UserError
from sft_jax.evaluation import Evaluator
from sft_jax.feed import Feed, Pace, Piece
from sft_jax.parallel import AXIS, Devices
from sft_jax.progress import Progress
from sft_jax.report.console import Bar, Console, epoch_line
from sft_jax.report.plan import plan_lines
from sft_jax.report.results import summarize, test_results, write_json, write_rows
from sft_jax.runs import Run
from sft_jax.signals import StopRequest
from sft_jax.start import fresh_state, load_init
from sft_jax.state import TrainState, from_arrays, to_arrays
from sft_jax.step import EvalSums, StepMetrics, make_train_step
from sft_jax.weights import Weights


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
    with StopRequest() as stop:
        # What can fail goes first, the quickest of it before the rest; the folder is written to when all is well.
        run.check_use(config, resume=resume)
        devices = Devices()
        devices.check_batch(config.batch_size)
        init = load_init(config)
        dataset = data.load_dataset(
            config.data,
            seed=config.seed,
            limit_train=config.limit_train_examples,
            limit_eval=config.limit_eval_examples,
        )
        trainer = Trainer(config, dataset, devices, run, console, stop)
        trainer.begin(init, resume=resume, command=command)
        trainer.fit()
    return trainer.finish()


class Trainer:
    """One run in one process: its compiled programs, its state on the devices and its progress."""

    def __init__(
        self,
        config: ConfigDict,
        dataset: data.Dataset,
        devices: Devices,
        run: Run,
        console: Console,
        stop: StopRequest,
    ):
        self.config, self.dataset, self.devices = config, dataset, devices
        self.run, self.console, self.stop = run, console, stop
        self.checkpoints = run.checkpoints
        self.steps_per_epoch = len(self.order(epoch=0))
        steps = config.epochs * self.steps_per_epoch
        self.schedule = optim.make_schedule(config.optimizer, steps)
        self.optimizer = optim.make_optimizer(config.optimizer, steps)
        classes = len(dataset.class_names)
        self.build = models.builder(config.model, classes, precision=config.precision, axis_name=AXIS)
        self.network = models.Functional.abstract(self.build)
        self.train_feed, self.validation_feed = Feed(dataset.train, devices), Feed(dataset.validation, devices)
        step = make_train_step(self.network, self.optimizer, AXIS)
        self.train_steps = devices.compile(
            make_train_steps(step, data.make_augment(config.data), AXIS, devices.count),
            sharded=(False, *self.train_feed.sharded, False, False, False),
            donate=(0,),
        )
        preprocess = data.make_preprocess(config.data)
        self.evaluate = Evaluator(self.network, preprocess, devices, classes, config.batch_size)
        self.key = devices.replicate(jax.random.key(config.seed))
        self.pace = Pace()
        self.progress = Progress()
        self.saved_at = time.monotonic()
        self.state: TrainState

    def order(self, epoch: int) -> np.ndarray:
        """Rows of the training images in the order of an epoch, int32 [steps, batch]."""
        return epoch_order(self.config.seed, epoch, len(self.dataset.train), self.config.batch_size)

    def begin(self, init: Weights | None, *, resume: bool, command: list[str]) -> None:
        """Continues the run's latest checkpoint if there is one and `resume` is set, else starts from `init`; says what
        will be done, and records the run.
        """
        state = self._restored() if resume else None
        if state is not None:
            done = self.progress.epoch >= self.config.epochs
            where = "all epochs are done" if done else f"in epoch {self.progress.epoch + 1}"
            start = f"resumed after step {int(state.step)}, {where}"
        else:
            state, start = fresh_state(
                self.config, self.build, self.network, self.optimizer, init, self.dataset.class_names
            )
        self.state = self.devices.replicate(state)
        if not self.run.exists():
            if resume:
                self.console.line(f"nothing to resume in {self.run.folder}: a fresh start")
            self.run.write_config(self.config, devices=str(self.devices), command=command)
        self.console.log_to(self.run.log_file)
        self.console.line(f"run        {self.run.folder}")
        plan = plan_lines(
            self.config,
            self.dataset,
            parameters=sum(leaf.size for leaf in self.network.params.values()),
            steps_per_epoch=self.steps_per_epoch,
            resident=self.train_feed.resident,
            devices=str(self.devices),
            start=start,
        )
        for line in plan:
            self.console.line(line)

    def fit(self) -> None:
        """Trains, evaluates and saves until `config.epochs` epochs are done. Raises DivergedError, StoppedError."""
        while self.progress.epoch < self.config.epochs:
            title = f"epoch {self.progress.epoch + 1}/{self.config.epochs}"
            with self.console.progress(title, self.steps_per_epoch, self.progress.epoch_steps) as bar:
                self._train_epoch(bar)
            start = time.perf_counter()
            with self.console.progress(f"{title}  validation", 1) as bar:
                sums = self._validate(bar)
            seconds = time.perf_counter() - start
            learning_rate = float(self.schedule(int(self.state.step) - 1))
            is_best = self.progress.finish_epoch(
                learning_rate=learning_rate,
                batch_size=self.config.batch_size,
                validation=summarize(sums),
                validation_seconds=seconds,
            )
            self._check_state()
            if is_best:  # before the latest, whose progress says that it exists
                self._save("best")
            self._save("latest")
            write_rows(self.run.metrics_file, self.progress.rows)
            row = self.progress.rows[-1]
            eta = (self.config.epochs - self.progress.epoch) * row["epoch_s"]
            self.console.line(epoch_line(row, self.config.epochs, eta))

    def finish(self) -> dict[str, Any]:
        """Scores the best checkpoint on the test split and writes results.json."""
        best = self.checkpoints.restore("best", None)
        if best is None:
            raise UserError(
                f"no epoch of {self.run.folder} had a finite validation accuracy: there is no best checkpoint"
            )
        params, batch_stats = (
            self.devices.replicate({key: best.arrays[f"{part}/{key}"] for key in shapes})
            for part, shapes in (("params", self.network.params), ("batch_stats", self.network.batch_stats))
        )
        sums = self.evaluate(params, batch_stats, Feed(self.dataset.test, self.devices))
        results = test_results(sums, self.dataset.class_names) | {
            "best_epoch": self.progress.best_epoch,
            "best_val_accuracy": self.progress.best,
            "epochs": self.progress.epoch,
            "steps": self.progress.epoch * self.steps_per_epoch,
            "seconds": self.progress.seconds,
        }
        write_json(self.run.results_file, results)
        self.console.line(
            f"best epoch {self.progress.best_epoch}: test accuracy {results['test_accuracy']:.2%} "
            f"on {results['test_count']:,} images, loss {results['test_loss']:.4f}; see {self.run.folder}"
        )
        return results

    def _train_epoch(self, bar: Bar) -> None:
        order = self.order(self.progress.epoch)
        pending: tuple[Piece, StepMetrics] | None = None
        clock = time.perf_counter()
        for piece in self.train_feed.pieces(order, first=self.progress.epoch_steps, pace=self.pace):
            with self.pace.timing(piece.steps):
                self.state, metrics = self.train_steps(self.state, *piece.arguments, self.key)
                # The call above only queues the work: the devices are never idle while the host reads the last figures.
                if pending is not None:
                    clock = self._account(*pending, clock, bar)
            pending = (piece, metrics)
            overdue = time.monotonic() - self.saved_at > 60 * self.config.save_minutes
            if self.stop or overdue:
                clock, pending = self._account(*pending, clock, bar), None
                self._check_state()
                self._obey()
                self._save("latest")
                clock = time.perf_counter()
        if pending is not None:
            self._account(*pending, clock, bar)

    def _validate(self, bar: Bar) -> EvalSums:
        def after_piece(done: int, steps: int) -> None:
            bar.set(done, steps)
            # The epoch counts as unfinished then; a resumed run comes back to this evaluation at once.
            self._obey()

        return self.evaluate(self.state.params, self.state.batch_stats, self.validation_feed, after_piece)

    def _account(self, piece: Piece, metrics: StepMetrics, clock: float, bar: Bar) -> float:
        """Waits for a piece, counts its figures, and returns the time."""
        losses, correct = (np.asarray(values)[piece.rows] for values in metrics)
        bad = np.flatnonzero(~np.isfinite(losses))
        if len(bad):
            step = self.progress.epoch * self.steps_per_epoch + self.progress.epoch_steps + int(bad[0]) + 1
            self._diverged(f"the loss is {losses[bad[0]]} at step {step} (epoch {self.progress.epoch + 1})")
        now = time.perf_counter()
        self.progress.add(losses, correct, now - clock)
        bar.advance(piece.steps, f"loss {losses.mean():.4f}")
        return now

    def _check_state(self) -> None:
        """A state that must not be saved: its last update overflowed, which no loss has shown yet."""
        weights_of = {**self.state.params, **self.state.batch_stats}
        bad = [key for key, leaf in jax.device_get(weights_of).items() if not np.isfinite(leaf).all()]
        if bad:
            self._diverged(
                f"{bad[0]} is not finite after step {int(self.state.step)} (epoch {self.progress.epoch + 1})"
            )

    def _diverged(self, what: str) -> None:
        raise DivergedError(
            f"{what}; the checkpoints before it are kept in {self.run.folder / 'checkpoints'}; "
            f"try a lower --config.optimizer.learning_rate with a fresh --workdir"
        )

    def _obey(self) -> None:
        """Saves and raises StoppedError where a stop was asked for."""
        if self.stop.signal is None:
            return
        self._save("latest")
        raise StoppedError(
            f"stopped by {self.stop.signal.name} after step {int(self.state.step)}; the state is saved, "
            f"add --resume to the same command to continue"
        )

    def _save(self, name: str) -> None:
        state = self.state if name == "latest" else {"params": self.state.params, "batch_stats": self.state.batch_stats}
        metadata = {"class_names": list(self.dataset.class_names), "progress": self.progress.to_json()}
        self.checkpoints.save(name, int(self.state.step), to_arrays(state), metadata)
        if name == "latest":
            self.saved_at = time.monotonic()

    def _restored(self) -> TrainState | None:
        network = self.network
        like = jax.eval_shape(
            lambda params, stats: TrainState.create(params, stats, self.optimizer), network.params, network.batch_stats
        )
        restored = self.checkpoints.restore("latest", to_arrays(like))
        if restored is None:
            return None
        for line in restored.notices:
            self.console.line(line)
        self.progress = Progress(**restored.metadata["progress"])
        write_rows(self.run.metrics_file, self.progress.rows)
        return from_arrays(like, restored.arrays)
