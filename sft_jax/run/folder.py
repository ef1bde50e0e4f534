"""The folder of a run: what lies where, who may use it, and how its weights are read back."""

import contextlib
import dataclasses
import gzip
import importlib.metadata
import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ml_collections import ConfigDict

import sft_jax
from sft_jax.config import complete, flatten
from sft_jax.data.sources.listing import Record
from sft_jax.data.sources.load import SOURCES
from sft_jax.errors import UserError
from sft_jax.models.weights import Weights
from sft_jax.run.checkpoints import Checkpoints, Restored
from sft_jax.runtime.files import digest, write_bytes, write_json, write_text
from sft_jax.tasks import monitor_of

# Keys that may differ when a run is resumed: they do not change what its steps so far have computed.
RESUMABLE_KEYS = {
    "epochs",
    "save_minutes",
    "compare_with_scratch",
    "data.dir",
    "data.download",
    "data.allow_overlap",
    "regularization.early_stopping",
}
RESUMABLE_GROUPS = ("logging.", "evaluation.")


@dataclasses.dataclass(frozen=True)
class Run:
    """Paths within a run's folder."""

    folder: Path

    @property
    def config_file(self) -> Path:
        """The resolved configuration, versions, devices and command line."""
        return self.folder / "config.json"

    @property
    def dataset_file(self) -> Path:
        """The classes, and which image is in which part."""
        return self.folder / "dataset.json.gz"

    @property
    def metrics_file(self) -> Path:
        """One JSON object an epoch."""
        return self.folder / "metrics.jsonl"

    @property
    def results_file(self) -> Path:
        """The figures of the best checkpoint on the test split."""
        return self.folder / "results.json"

    @property
    def report_file(self) -> Path:
        """The page on the run."""
        return self.folder / "report.html"

    @property
    def log_file(self) -> Path:
        """What the console said."""
        return self.folder / "train.log"

    @property
    def checkpoints(self) -> Checkpoints:
        """The latest and the best."""
        return Checkpoints(self.folder / "checkpoints")

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.config_file.exists()

    @contextlib.contextmanager
    def claimed(self, config: ConfigDict, *, resume: bool) -> Iterator[None]:
        """No other process trains in the folder meanwhile. Raises UserError as `check_use` does."""
        with self._locked():
            self._check_content(config, resume=resume)
            yield

    def check_use(self, config: ConfigDict, *, resume: bool) -> None:
        """Raises UserError where the folder holds a run that `config` must not or cannot continue, or that another
        process is at, or where it cannot be written to.
        """
        self._check_content(config, resume=resume)
        if self.exists():
            with self._locked():
                pass

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise UserError(
                f"another process trains in {self.folder}; let it finish or stop it, or choose a fresh --workdir"
            ) from None
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written to: {error}") from None
        try:
            yield
        finally:
            lock.release()

    def _check_content(self, config: ConfigDict, *, resume: bool) -> None:
        if not self.exists():
            if self.folder.exists() and not self.folder.is_dir():
                raise UserError(f"--workdir {self.folder} is a file; name a folder")
            return
        if not resume:
            raise UserError(
                f"{self.folder} already holds a run; add --resume to continue it, or choose a fresh --workdir"
            )
        old, new = _settings(self.config()), _settings(config)
        changed = [
            f"{key} (was {old[key]!r}, now {new[key]!r})"
            for key in new
            if old[key] != new[key] and not self._may_change(key, old[key], new[key])
        ]
        if changed:
            raise UserError(
                f"{self.folder} was started with another config; resume it with the same one, or go on from its "
                f"weights with --config.init={self.folder} and a fresh --workdir; changed: {', '.join(changed)}"
            )

    def _may_change(self, key: str, old: Any, new: Any) -> bool:
        if key == "data.source":
            # Its files are held against the record.
            return self.dataset_file.exists() and _is_path(old) and _is_path(new) and _kind(old) == _kind(new)
        return key in RESUMABLE_KEYS or key.startswith(RESUMABLE_GROUPS)

    def config(self) -> ConfigDict:
        """The configuration the run goes by. Raises UserError where there is none to be read."""
        return complete(flatten(self.record()["config"]))

    def record(self) -> dict[str, Any]:
        """config.json: config, versions, devices, command. Raises UserError where there is none to be read."""
        try:
            record = json.loads(self.config_file.read_text())
            flatten(record["config"])
            # The first versions recorded none.
            expected = record.pop("digest", None)
        except FileNotFoundError:
            raise UserError(f"{self.folder} holds no run: there is no {self.config_file.name} in it") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # no file of ours, or no longer
            raise UserError(f"{self.config_file} cannot be read: {type(error).__name__}: {error}") from None
        if expected is not None and digest({}, record) != expected:
            raise UserError(f"{self.config_file} was changed after it was written: it no longer says what was trained")
        return record

    def dataset_record(self) -> Record | None:
        """What the run recorded of its images, None before it begins. Raises UserError where that cannot be read."""
        try:
            contents = json.loads(gzip.decompress(self.dataset_file.read_bytes()))
            expected = contents.pop("digest")
            if digest({}, contents) != expected:
                raise ValueError("it was changed after it was written")
            return Record.from_json(contents)
        except FileNotFoundError:
            return None
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.dataset_file}, which says what is in which part, cannot be read: "
                f"{type(error).__name__}: {error}"
            ) from None

    def write_dataset_record(self, record: Record) -> None:
        """Records the images of a run that begins. Raises UserError where it cannot."""
        contents = record.to_json()
        text = json.dumps(contents | {"digest": digest({}, contents)}, separators=(",", ":"))
        # Without the time, so that the same record is the same file.
        write_bytes(self.dataset_file, gzip.compress(text.encode(), mtime=0))

    def rows(self) -> list[dict[str, Any]]:
        """metrics.jsonl, nothing before the first epoch's end. Raises UserError where it cannot be read."""
        try:
            return [json.loads(line) for line in self.metrics_file.read_text().splitlines()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise UserError(f"{self.metrics_file} cannot be read: {error}") from None

    def results(self) -> dict[str, Any] | None:
        """results.json, None before the end. Raises UserError where it cannot be read."""
        try:
            return json.loads(self.results_file.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.results_file} cannot be read: {error}") from None

    def restored(self, which: str) -> Restored:
        """The "best" or "latest" checkpoint. Raises UserError where there is none yet, or none that can be read."""
        found = self.checkpoints.restore(which)
        if found is None:
            raise UserError(f"{self.folder} has no {which} checkpoint yet: its first epoch was not finished")
        return found

    def latest_metadata(self) -> dict[str, Any]:
        """What was saved with the latest checkpoint; nothing where there is none yet. Raises UserError."""
        found = self.checkpoints.restore("latest")
        return {} if found is None else found.metadata

    def write_config(self, config: ConfigDict, **facts: Any) -> None:
        """Records the configuration, the versions in use and further `facts`. Raises UserError where it cannot."""
        packages = ("jax", "flax", "optax", "orbax-checkpoint")
        versions = {"sft-jax": sft_jax.__version__} | {name: importlib.metadata.version(name) for name in packages}
        # As it will be read: JSON has no tuples.
        record = json.loads(json.dumps({"config": config.to_dict(), "versions": versions, **facts}, default=str))
        write_json(self.config_file, record | {"digest": digest({}, record)})

    def update_config(self, config: ConfigDict, **facts: Any) -> Path | None:
        """Records the configuration with which the run goes on, where it is another one than before.

        Returns:
          where the record of before is kept, config.1.json or the next number that is free; None where nothing changed.

        Raises:
          UserError: the record cannot be read or written.
        """
        if _settings(self.config()) == _settings(config):
            return None
        numbered = (self.config_file.with_suffix(f".{number}.json") for number in itertools.count(1))
        kept = next(path for path in numbered if not path.exists())
        # The old one first: a run has a record at any time.
        write_text(kept, self.config_file.read_text())
        self.write_config(config, **facts)
        return kept


def _kind(source: str) -> str:
    return source.partition(":")[0]


def _is_path(source: str) -> bool:
    """Whether a `data.source` is a path, which may be another one after a move."""
    return _kind(source) in SOURCES and SOURCES[_kind(source)].is_path


def _settings(config: ConfigDict) -> dict[str, Any]:
    """Every key and its value, with the name of the monitor where the task's own is meant."""
    return flatten(config) | {"monitor": monitor_of(config).name}


def load_run_weights(workdir: Path, which: str = "best") -> Weights:
    """The weights of a run's "best" or "latest" checkpoint, with its architecture and class names.

    Raises:
      UserError: no run there, no such checkpoint yet, or none that can be read.
    """
    run = Run(workdir)
    config = run.config()
    restored = run.restored(which)
    arrays = {
        key.partition("/")[2]: array
        for key, array in restored.arrays.items()
        if key.startswith(("params/", "batch_stats/"))
    }
    metadata = {"source": str(workdir)}
    if "preprocess" in restored.metadata:  # not in the first runs
        metadata["preprocess"] = json.dumps(restored.metadata["preprocess"])
    return Weights(arrays, config.model.name, tuple(restored.metadata["class_names"]), metadata)
