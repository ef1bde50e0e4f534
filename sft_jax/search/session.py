"""A complete search: chooses trials, trains them, stores their results and writes the output."""

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import optuna
from ml_collections import ConfigDict

from sft_jax import models
from sft_jax.config import flatten
from sft_jax.config.traced import ROUNDED, TRACEABLE
from sft_jax.config.written import recipe
from sft_jax.errors import DivergedError, StoppedError, UserError
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.runtime.devices import Devices
from sft_jax.runtime.files import write_text
from sft_jax.runtime.signals import StopRequest
from sft_jax.search import plots
from sft_jax.search.at_once import MOST, AtOnce, choose
from sft_jax.search.report import best_config, table_lines, write_tables
from sft_jax.search.results import DONE, PRUNED, Trial, best, finished, ranked, trial_of
from sft_jax.search.space import Space, describe
from sft_jax.search.study import Study
from sft_jax.search.trials import Trainer
from sft_jax.tasks import check_settings, monitor_of
from sft_jax.training import optimizer


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a search: the command's flags, see `__main__.py`."""

    trials: int
    folds: int
    sampler: str
    pruner: str
    at_once: int | None
    resume: bool
    command: Sequence[str]


def search(config: ConfigDict, space: Space, folder: Path, options: Options, console: Console) -> Trial:
    """Searches `space` with `config` as the base, writes to `folder` and returns the best trial.

    Raises:
      UserError: the arguments, data or weights are invalid.
      DivergedError: no trial has a score.
      StoppedError: a signal stopped the search; finished trials and folds are kept.
    """
    stop = StopRequest()
    with contextlib.closing(Session(config, space, folder, options, console, stop)) as session:
        with stop:
            session.begin()
            session.run()
        return session.finish()


class Session:
    """A search within one process."""

    def __init__(
        self, config: ConfigDict, space: Space, folder: Path, options: Options, console: Console, stop: StopRequest
    ):
        self.config, self.space, self.folder, self.options = config, space, folder, options
        self.console, self.stop = console, stop
        self.study: Study
        self.at_once = AtOnce(1, "")
        self.monitor = monitor_of(config)
        self._opened = contextlib.ExitStack()

    def close(self) -> None:
        """Closes the study if `begin` has opened it."""
        self._opened.close()

    def begin(self) -> None:
        """Checks the arguments, opens the study and decides how many trials train at once."""
        options = self.options
        if Run(self.folder).exists():
            raise UserError(f"{self.folder} contains a run; use another --workdir")
        devices = Devices()
        corners = [self.space.config(self.config, point) for point in self.space.corners()]
        for corner in corners:
            check_settings(corner)
            devices.check_batch(corner.batch_size, corner.optimizer.accumulate)
            network = models.architecture(corner.model.name)
            optimizer.make_optimizer(corner.optimizer, corner.epochs, architecture=network)
        self.trainer = Trainer(self.config, self.space, options.folds, devices, self.console)
        scored_on = self.trainer.data(corners[0])
        scored_on[0]  # raises if the folds cannot be made, before anything is written
        study = Study(
            self.folder,
            self.space,
            {
                "config": json.loads(json.dumps(flatten(self.config))),
                "space": [str(dimension) for dimension in self.space.dimensions],
                **{name: getattr(options, name) for name in ("folds", "sampler", "pruner")},
            },
            sampler=options.sampler,
            pruner=options.pruner,
            seed=self.config.seed,
            trials=options.trials,
            resume=options.resume,
        )
        self.study = self._opened.enter_context(contextlib.closing(study))
        self.console.log_to(self.folder / "search.log")
        if options.resume:
            done = len(self.study.trials())
            self.console.line(
                f"resumed after {done} trials"
                if self.study.resumed
                else f"nothing to resume in {self.folder}; starting a new search"
            )
        self.console.line(f"search     {self.folder}: {options.trials} trials over {self.space}")
        self.console.line(
            f"           {options.sampler}, seed {self.config.seed}, pruning: {options.pruner}; trials are scored by "
            f"{self.monitor.words} on {scored_on}"
        )
        self.at_once = self._decide(corners[0])
        self.trainer.traced = self._traced(self.at_once.count)
        self.console.line(f"at once    {_trials(self.at_once.count)}: {self.at_once.reason}")

    def run(self) -> None:
        """Trains until the requested number of trials is finished. Raises StoppedError."""
        while (done := len(self.study.trials())) < self.options.trials:
            left = self.options.trials - done
            # Rounds have the same size if possible, because each size needs its own program.
            rounds = -(-left // self.at_once.count)
            batch = self.study.next(-(-left // rounds))
            if not batch:
                break
            for group in self.trainer.groups(batch, self.at_once.count):
                self._run_group(group)

    def finish(self) -> Trial:
        """Writes the tables, plots and best.py, prints the table, and returns the best trial."""
        trials = finished(self.study, self.space, self.options.folds, self.monitor)
        order = ranked(trials)
        winner = best(trials)
        keys = [dimension.key for dimension in self.space.dimensions]
        seconds = sum(trial.seconds for trial in trials)
        steps = sum(fold.steps for trial in trials for fold in trial.folds)
        one_by_one = self.at_once.one_by_one(seconds, steps)
        facts = {
            "config": self.config.to_dict(),
            "space": str(self.space),
            **{name: getattr(self.options, name) for name in ("folds", "sampler", "pruner", "command")},
            "at_once": dataclasses.asdict(self.at_once),
            "seconds": seconds,
            "seconds_one_by_one": one_by_one,
            "best_trial": winner.number if winner else None,
        }
        write_tables(self.folder, order, self.options.folds, facts)
        for line in table_lines(order, keys, self.options.folds):
            self.console.line(line)
        self.console.line(_time_line(len(trials), seconds, one_by_one, self.at_once))
        if winner is None:
            raise DivergedError(f"no trial has a score; see {self.folder}/search.csv and try lower learning rates")
        plots.draw(self.folder, trials, self.space.dimensions)
        self._write_best(winner)
        return winner

    def _decide(self, corner: ConfigDict) -> AtOnce:
        """Decides how many trials train at once; a resumed search keeps its decision."""
        asked = self.options.at_once
        most = min(asked or MOST, self.options.trials)
        if asked == 1:
            return AtOnce(1, "set by --at-once")
        keys = self._traced(most)
        if not keys:
            return AtOnce(1, f"only these keys may differ between trials in one program: {', '.join(TRACEABLE)}")
        if most == 1:
            return AtOnce(1, "there is only one trial")
        known = self.study.remembered("at_once")
        if known is not None and asked in (None, known["count"]):
            return AtOnce(**known)
        self.trainer.traced = keys
        together, dataset = self.trainer.together(corner), self.trainer.data(corner)[0]
        with self.console.status(f"timing one trial and {most} at once"):
            decision = choose(together, [corner] * most, dataset, asked=asked)
        self.study.remember("at_once", dataclasses.asdict(decision))
        return decision

    def _traced(self, count: int) -> tuple[str, ...]:
        """Returns the dimensions that a program of `count` trials takes as arguments."""
        keys = [dimension.key for dimension in self.space.dimensions]
        # A single trial must be bit-identical to a run.
        return tuple(key for key in keys if key in TRACEABLE and (count > 1 or key not in ROUNDED))

    def _run_group(self, group: list[optuna.Trial]) -> None:
        first = len(self.study.trials()) + 1
        last = first + len(group) - 1
        title = f"trial {first}" if first == last else f"trials {first}-{last}"
        self.trainer.train(group, f"{title}/{self.options.trials}", self._check_stop)
        for trial in group:
            self._tell(trial)
            trials = finished(self.study, self.space, self.options.folds, self.monitor)
            self.console.line(_trial_line(trials[-1], self.options.trials, best(trials)))

    def _tell(self, trial: optuna.Trial) -> None:
        result = trial_of(trial, 0, self.space, self.options.folds, self.monitor)
        self.study.tell(trial, None if result.state == PRUNED else result.mean)

    def _check_stop(self) -> None:
        if self.stop.signal is not None:
            raise StoppedError(
                f"stopped by {self.stop.signal.name}; finished trials and folds are kept, add --resume to the same "
                f"command to continue"
            )

    def _write_best(self, winner: Trial) -> None:
        config, cut = best_config(self.space.config(self.config, winner.point), winner)
        path = self.folder / "best.py"
        files = [shlex.quote(str(file)) for file in (path, self.folder / "best")]
        command = "python -m sft_jax.main --config {} --workdir {}".format(*files)
        spread = (
            "" if winner.deviation is None else f" +- {winner.shown(winner.deviation)} over {len(winner.folds)} folds"
        )
        score = f"{self.monitor.words} {winner.shown(winner.mean)}{spread}"
        if cut:
            epochs = f"after {winner.epochs} epochs"
        elif winner.stops_early:
            epochs = f"with early stopping, after {winner.epochs} of {config.epochs} epochs on average"
        else:
            epochs = f"after {winner.epochs} of {config.epochs} epochs (unchanged, as the schedule depends on them)"
        summary = f"The best of {len(self.study.trials())} trials: {score} {epochs}."
        docstring = f"{summary}\n\n    {command}"
        about = "Returns the configuration of the best trial; tuned settings are marked."
        write_text(path, recipe(config, docstring=docstring, about=about, marks=dict.fromkeys(winner.point, "tuned")))
        self.console.line(f"best       trial {winner.number}: {describe(winner.point)}: {score} {epochs}")
        self.console.conclude(f"run it     {command}")


def _trial_line(trial: Trial, trials: int, leader: Trial | None) -> str:
    if trial.state != DONE:
        score = trial.state
    elif trial.deviation is None:
        score = f"val {trial.shown(trial.mean)}"
    else:
        score = f"val {trial.shown(trial.mean)} +- {trial.shown(trial.deviation)}"
    lead = f"  best {leader.shown(leader.mean)} (trial {leader.number})" if leader else ""
    return f"trial {trial.number}/{trials}  {describe(trial.point)}  {score}{lead}  {trial.seconds:.1f} s"


def _time_line(count: int, seconds: float, one_by_one: float | None, at_once: AtOnce) -> str:
    line = f"time       {count} trials in {seconds:.1f} s, {at_once.count} at once"
    if one_by_one is not None:
        return f"{line}; sequentially at least {one_by_one:.1f} s (estimated: {at_once.reason})"
    return line if at_once.alone_s is None else f"{line} ({at_once.reason})"


def _trials(count: int) -> str:
    return "1 trial" if count == 1 else f"{count} trials"
