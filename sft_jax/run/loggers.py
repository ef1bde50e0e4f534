"""Loggers of a run's metrics: TensorBoard always, Weights & Biases and MLflow if configured."""

import importlib
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, Self

from sft_jax.config import flatten
from sft_jax.errors import UserError, reason
from sft_jax.run.event_file import EventFile
from sft_jax.run.folder import Run
from sft_jax.run.progress import Progress
from sft_jax.runtime.files import write_json

Row = Mapping[str, Any]

# The run's identifiers at the services, with which a resumed run continues its logs.
IDS_FILE = "loggers.json"


class Logger(Protocol):
    """An open log.

    Attributes:
      known: number of the run's rows that it already contains.
    """

    known: int

    def row(self, row: Row) -> None:
        """Logs an epoch's row of metrics.jsonl."""

    def results(self, results: Row) -> None:
        """Logs the contents of results.json."""

    def close(self, done: bool) -> None:
        """Closes the log; `done` is whether the run was completed."""


class TensorBoard:
    """TensorBoard event files, written without TensorFlow. A resumed run rewrites them to avoid duplicate points."""

    def __init__(self, folder: Path):
        self._folder = folder / "tensorboard"
        self._folder.mkdir(exist_ok=True)
        for stale in self._folder.glob("events.out.tfevents.*"):
            stale.unlink()
        self._file: EventFile | None = None
        self.known = 0
        self._step = 0

    def row(self, row: Row) -> None:
        """See `Logger`."""
        self._step = row["step"]
        self._add({name: value for name, value in row.items() if name != "step"})

    def results(self, results: Row) -> None:
        """See `Logger`."""
        self._add({name: value for name, value in results.items() if name.startswith("test_")})

    def close(self, done: bool) -> None:
        """See `Logger`."""
        if self._file is not None:
            self._file.close()

    def _add(self, values: Row) -> None:
        self._file = self._file or EventFile(self._folder)
        self._file.scalars(self._step, {_tag(name): value for name, value in _numbers(values).items()})


class WandB:
    """A run of Weights & Biases, in the project WANDB_PROJECT or by default sft-jax."""

    def __init__(self, module: ModuleType, folder: Path, config: Row):
        ids = _ids(folder)
        if "wandb" not in ids:
            write_json(folder / IDS_FILE, ids | {"wandb": secrets.token_hex(8)})
        self._run: Any = module.init(
            project=os.environ.get("WANDB_PROJECT", "sft-jax"),
            name=folder.resolve().name,
            id=_ids(folder)["wandb"],
            resume="allow",
            dir=str(folder),
            config=flatten(config),
        )
        # `step` is the next step of a continued run; rows are logged with their epochs as steps.
        self.known = max(0, self._run.step - 1)

    def row(self, row: Row) -> None:
        """See `Logger`."""
        self._run.log(dict(row), step=row["epoch"])

    def results(self, results: Row) -> None:
        """See `Logger`."""
        self._run.summary.update(_numbers(results))

    def close(self, done: bool) -> None:
        """See `Logger`."""
        self._run.finish(exit_code=0 if done else 1)


class MLflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI and in the experiment MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, module: ModuleType, folder: Path, config: Row):
        self._module: Any = module
        ids = _ids(folder)
        run = self._module.start_run(run_id=ids.get("mlflow"), run_name=folder.resolve().name)
        self.known = int(run.data.metrics.get("epoch", 0))
        if "mlflow" not in ids:
            write_json(folder / IDS_FILE, ids | {"mlflow": run.info.run_id})
            self._module.log_params(flatten(config))

    def row(self, row: Row) -> None:
        """See `Logger`."""
        self._module.log_metrics(_numbers(row), step=row["epoch"])

    def results(self, results: Row) -> None:
        """See `Logger`."""
        self._module.log_metrics(_numbers(results))

    def close(self, done: bool) -> None:
        """See `Logger`."""
        self._module.end_run("FINISHED" if done else "FAILED")


class Logs:
    """The observer (see `training.observer`) with all loggers of a run; a logger that fails is dropped.

    Raises:
      UserError: a package required by the configuration, the group `logging`, is not installed.
    """

    def __init__(self, config: Mapping[str, bool]):
        self._modules = {name: _module(name) for name in ("wandb", "mlflow") if config[name]}
        self._loggers: dict[str, Logger] = {}
        self._say: Callable[[str], None] = print

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._each(lambda logger: logger.close(kind is None))

    def begin(self, experiment: object, run: Run, progress: Progress, say: Callable[[str], None]) -> None:
        """See `Observer`. Only the primary process logs."""
        if run.writable:
            self.open(run.folder, run.record()["config"], progress.rows, say)

    def epoch(self, progress: Progress) -> None:
        """See `Observer`."""
        self._each(lambda logger: logger.row(progress.rows[-1]))

    def best(self, weights: object, figures: Row, progress: Progress) -> None:
        """See `Observer`."""

    def end(self, weights: object, results: Row, progress: Progress) -> None:
        """See `Observer`."""
        self._each(lambda logger: logger.results(results))

    def open(self, folder: Path, config: Row, rows: Sequence[Row], say: Callable[[str], None]) -> None:
        """Opens the logs of the run in `folder` and adds those of its `rows` that they lack.

        `say` gets a line for each logger that fails.
        """
        self._say = say
        makers: dict[str, Callable[[], Logger]] = {"tensorboard": lambda: TensorBoard(folder)}
        for name, kind in (("wandb", WandB), ("mlflow", MLflow)):
            if name in self._modules:
                makers[name] = lambda kind=kind, name=name: kind(self._modules[name], folder, config)  # type: ignore[misc]
        for name, make in makers.items():
            try:
                self._loggers[name] = make()
            except Exception as error:
                self._failed(name, error)

        def catch_up(logger: Logger) -> None:
            for row in rows[logger.known :]:
                logger.row(row)

        self._each(catch_up)

    def _each(self, tell: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                tell(logger)
            except Exception as error:
                del self._loggers[name]
                self._failed(name, error)

    def _failed(self, name: str, error: Exception) -> None:
        self._say(f"notice: {name} failed, the run continues without it: {reason(error)}")


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"config.logging.{name}=True, but {name} cannot be imported ({error}); run pip install {name}"
        ) from None


def _ids(folder: Path) -> dict[str, str]:
    path = folder / IDS_FILE
    return json.loads(path.read_text()) if path.exists() else {}


def _numbers(values: Row) -> dict[str, float]:
    """Returns the numeric entries of `values`."""
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _tag(name: str) -> str:
    """Converts train_loss to loss/train, because TensorBoard groups charts by the part before the slash."""
    split, _, rest = name.partition("_")
    return f"{rest}/{split}" if split in ("train", "val", "test") else name
