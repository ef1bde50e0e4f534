"""Trains trials fold by fold, those together that differ only in settings that a program takes as arguments."""

import dataclasses
import functools
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import optuna
from ml_collections import ConfigDict

from sft_jax.config import complete, flatten
from sft_jax.errors import UserError
from sft_jax.run.console import Console
from sft_jax.run.progress import waited
from sft_jax.runtime.devices import Devices
from sft_jax.search.folds import Folds
from sft_jax.search.results import DIVERGED, DONE, PRUNED, Fold
from sft_jax.search.space import Space, describe
from sft_jax.search.study import fold_of, keep_fold, point_of
from sft_jax.search.vmapped import Epoch, VmappedTrials
from sft_jax.tasks import task_class
from sft_jax.training.start import read_dataset

Values = tuple[tuple[str, Any], ...]

# Networks and datasets kept in memory for the next trials (least recently used are dropped).
KEPT_NETWORKS, KEPT_DATASETS = 4, 2


class Trainer:
    """Trains trials of `space` with `base` as the base configuration.

    Attributes:
      traced: the dimensions that programs take as arguments; trials that agree in all others share a program.
    """

    def __init__(self, base: ConfigDict, space: Space, folds: int, devices: Devices, console: Console):
        self.base, self.space, self.folds, self.devices, self.console = base, space, folds, devices, console
        self.traced: Collection[str] = ()
        self._datasets = functools.lru_cache(KEPT_DATASETS)(self._read)
        self._networks = functools.lru_cache(KEPT_NETWORKS)(self._make)

    def data(self, config: ConfigDict) -> Folds:
        """Returns the data that a configuration is trained and scored on."""
        values = flatten(config)
        others = ["task", "seed", "limit_train_examples", "limit_eval_examples"]
        if task_class(config).inputs != ("image",):  # texts are read with the tokenizer of the weights
            others += ["init", *(key for key in values if key.startswith(("model.", "text.")))]
        return self._datasets(tuple((key, values[key]) for key in values if key.startswith("data.") or key in others))

    def together(self, config: ConfigDict) -> VmappedTrials:
        """Returns the training of `config` and of all configurations that differ from it only in `traced`."""
        return self._networks(self._static(config), tuple(self.traced))

    def groups(self, trials: Sequence[optuna.Trial], most: int) -> list[list[optuna.Trial]]:
        """Splits `trials` into groups of at most `most` that one program can train at once."""
        compatible: dict[Values, list[optuna.Trial]] = {}
        for trial in trials:
            compatible.setdefault(self._static(self.config(trial)), []).append(trial)
        return [group[first : first + most] for group in compatible.values() for first in range(0, len(group), most)]

    def config(self, trial: optuna.Trial) -> ConfigDict:
        """Returns the trial's configuration. Raises UserError if it is invalid."""
        return self.space.config(self.base, point_of(trial, self.space))

    def train(self, trials: Sequence[optuna.Trial], title: str, check_stop: Callable[[], None]) -> None:
        """Trains a group on its unfinished folds, and stores the results in the trials.

        `title` is shown before the progress bar; `check_stop` is called regularly and may raise.

        Raises:
          UserError: a configuration does not fit its data; the message names the trial.
        """
        try:
            for fold in range(self.folds):
                open_ones = [trial for trial in trials if fold_of(trial, fold) is None and not _ended(trial, fold)]
                if open_ones:
                    self._train_fold(open_ones, fold, title, check_stop)
        except UserError as error:
            names = "; ".join(describe(point_of(trial, self.space)) for trial in trials)
            raise UserError(f"{error} (in a trial with {names})") from None

    def _train_fold(
        self, trials: Sequence[optuna.Trial], fold: int, title: str, check_stop: Callable[[], None]
    ) -> None:
        configs = [self.config(trial) for trial in trials]
        dataset, together = self.data(configs[0])[fold], self.together(configs[0])
        patience = configs[0].regularization.early_stopping
        records = [Fold(stops_early=patience is not None) for _ in trials]
        over = [False] * len(trials)
        experiment = together.experiment(dataset)
        steps_per_epoch, last_phase = experiment.steps_per_epoch, experiment.phases[-1].first
        steps = configs[0].epochs * steps_per_epoch
        main = experiment.task.main().name
        start = time.perf_counter()
        with self.console.progress(f"{title}  fold {fold + 1}/{self.folds}" if self.folds > 1 else title, steps) as bar:

            def after_call(done: int) -> None:
                bar.advance(done)
                check_stop()

            for rows in together.epochs(configs, dataset, after_call):
                for index, (record, row) in enumerate(zip(records, rows, strict=True)):
                    if not over[index]:
                        _add(record, row, main)
                        over[index] = (
                            record.state != DONE
                            or (patience is not None and waited(record.score[last_phase:]) >= patience)
                            or self._pruned(trials[index], fold, record, configs[0].epochs)
                        )
                if all(over):
                    break
        for trial, record in zip(trials, records, strict=True):
            record.steps = len(record.score) * steps_per_epoch
            record.seconds = (time.perf_counter() - start) / len(trials)
            keep_fold(trial, fold, dataclasses.asdict(record))

    def _pruned(self, trial: optuna.Trial, fold: int, record: Fold, epochs: int) -> bool:
        """Reports the mean of the folds' best scores so far; returns whether the trial is pruned."""
        before = [max(Fold.from_json(kept).score) for other in range(fold) if (kept := fold_of(trial, other))]
        value = (sum(before) + max(record.score)) / (fold + 1)
        trial.report(value, step=fold * epochs + len(record.score))
        if trial.should_prune():
            record.state = PRUNED
        return record.state == PRUNED

    def _static(self, config: ConfigDict) -> Values:
        return tuple((key, value) for key, value in flatten(config).items() if key not in self.traced)

    def _read(self, values: Values) -> Folds:
        return Folds(read_dataset(complete(dict(values)), self.console), self.folds, self.base.seed)

    def _make(self, static: Values, traced: tuple[str, ...]) -> VmappedTrials:
        config = complete(dict(static))
        return VmappedTrials(config, traced, self.data(config)[0], self.devices, folds=self.folds > 1)


def _add(record: Fold, row: Epoch, main: str) -> None:
    if not row.finite:
        record.state = DIVERGED
        return
    record.figures.setdefault(main, []).append(row.main)
    record.score.append(row.score)
    record.val_loss.append(row.val_loss)
    record.train_loss.append(row.train_loss)


def _ended(trial: optuna.Trial, fold: int) -> bool:
    """Returns whether an earlier fold was pruned or diverged."""
    return any((record := fold_of(trial, other)) is not None and record["state"] != DONE for other in range(fold))
