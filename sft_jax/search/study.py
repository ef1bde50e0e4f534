"""The trials of a search in Optuna's SQLite storage: proposes trials, and keeps their results across kills."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from sft_jax.errors import UserError
from sft_jax.search.space import Point, Space

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("none", "median", "asha")
DATABASE = "search.db"
_RECORD, _FOLD = "record", "fold_{}"


class Study:
    """The trials in a folder's `search.db`, which is created if missing. Must be closed.

    The sampler draws trial n with a seed derived from the search's seed and n, so that a search that is killed and
    resumed proposes the same trials.

    Args:
      folder: folder of the search.
      space: the search space.
      record: settings that must not change when the search is resumed, JSON-serialisable.
      sampler, pruner: of `SAMPLERS` and `PRUNERS`.
      seed: seed of the sampler.
      trials: planned number of trials, for a grid.
      resume: whether to continue an existing search.

    Raises:
      UserError: the folder contains a search that must not or cannot be continued, or the grid has more points.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        record: Mapping[str, Any],
        *,
        sampler: str,
        pruner: str,
        seed: int,
        trials: int,
        resume: bool,
    ):
        self.space, self._sampler, self._seed = space, sampler, seed
        self._storage: optuna.storages.RDBStorage | None = None
        grid = space.grid(trials) if sampler == "grid" else []
        database = folder / DATABASE
        self.resumed = database.exists()
        if self.resumed and not resume:
            raise UserError(
                f"{folder} already contains a search; add --resume to continue it, or use another --workdir"
            )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._storage = optuna.storages.RDBStorage(f"sqlite:///{database}")
            self._study = optuna.create_study(
                storage=self._storage,
                study_name="search",
                direction="maximize",
                pruner=_pruner(pruner),
                load_if_exists=True,
            )
        except Exception as error:  # any error of SQLAlchemy or the system is about the file
            self.close()
            raise UserError(f"{database} cannot be used: {' '.join(str(error).split())[:200]}") from None
        try:
            self._begin(folder, grid, record)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the connections to the database, which SQLAlchemy otherwise leaves to the garbage collector."""
        if self._storage is not None:
            self._storage.remove_session()
            self._storage.engine.dispose()

    def next(self, count: int) -> list[optuna.Trial]:
        """Proposes up to `count` trials; none if a grid is exhausted."""
        proposed: list[optuna.Trial] = []
        for _ in range(count):
            number = len(self.trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING))
            if self._sampler == "grid" and not self.trials(TrialState.WAITING):
                break
            self._study.sampler = self._make_sampler(number)
            trial = self._study.ask()
            for dimension in self.space.dimensions:
                if dimension.form == "choice":
                    trial.suggest_categorical(dimension.key, dimension.choices)
                elif dimension.form == "int":
                    trial.suggest_int(dimension.key, int(dimension.low), int(dimension.high))
                else:
                    trial.suggest_float(dimension.key, dimension.low, dimension.high, log=dimension.form == "log")
            proposed.append(trial)
        return proposed

    def trials(self, *states: TrialState) -> list[optuna.trial.FrozenTrial]:
        """Returns the trials in these states in order, by default the finished ones."""
        return self._study.get_trials(deepcopy=False, states=states or (TrialState.COMPLETE, TrialState.PRUNED))

    def tell(self, trial: optuna.Trial, score: float | None) -> None:
        """Finishes a trial with its score, or as pruned if that is None."""
        if score is None:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, score)

    def remember(self, name: str, value: Any) -> None:
        """Stores a JSON-serialisable value with the study."""
        self._study.set_user_attr(name, value)

    def remembered(self, name: str) -> Any:
        """Returns a value stored by `remember`, None if there is none."""
        return self._study.user_attrs.get(name)

    def _begin(self, folder: Path, grid: Iterable[Point], record: Mapping[str, Any]) -> None:
        """Records a new search and the points of its grid, or checks the record of a resumed one. Raises UserError."""
        known = self._study.user_attrs.get(_RECORD)
        if known is None:  # a new search, or one killed at this point
            for point in grid:
                self._study.enqueue_trial(dict(point), skip_if_exists=True)
            self._study.set_user_attr(_RECORD, dict(record))
        else:
            _check_same(folder, known, record)
            self._retry()

    def _retry(self) -> None:
        """Queues trials that were running when the search was killed, with the folds that they have finished."""
        running = self.trials(TrialState.RUNNING)
        waiting = [trial.params or trial.system_attrs.get("fixed_params") for trial in self.trials(TrialState.WAITING)]
        for trial in running:
            whole = len(trial.params) == len(self.space.dimensions)
            if whole and trial.params not in waiting:
                self._study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _make_sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        if self._sampler != "tpe":
            return optuna.samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # constant_liar assumes a bad score for running trials, so that the next one is proposed elsewhere.
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


def fold_of(trial: optuna.Trial | optuna.trial.FrozenTrial, fold: int) -> dict[str, Any] | None:
    """Returns a fold stored by `keep_fold`, None if there is none."""
    return trial.user_attrs.get(_FOLD.format(fold))


def keep_fold(trial: optuna.Trial, fold: int, record: Mapping[str, Any]) -> None:
    """Stores the result of a fold, so that it survives a kill during the next one."""
    trial.set_user_attr(_FOLD.format(fold), dict(record))


def point_of(trial: optuna.Trial | optuna.trial.FrozenTrial, space: Space) -> Point:
    """Returns the trial's point of the space."""
    return {dimension.key: trial.params[dimension.key] for dimension in space.dimensions}


def _pruner(name: str) -> optuna.pruners.BasePruner:
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1)
    if name == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    return optuna.pruners.NopPruner()


def _check_same(folder: Path, known: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    changed = [
        f"{key} (was {known.get(key)!r}, now {record[key]!r})" for key in record if known.get(key) != record[key]
    ]
    if changed:
        raise UserError(
            f"{folder} was started with other settings; resume it with the same ones or use another --workdir; "
            f"changed: {', '.join(changed)}"
        )
