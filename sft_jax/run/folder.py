"""The folder of a run: its files and locking."""

import contextlib
import dataclasses
import gzip
import importlib.metadata
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ml_collections import ConfigDict

import sft_jax
from sft_jax.config import complete, flatten
from sft_jax.data.sources.known import SOURCES
from sft_jax.data.sources.listing import Record
from sft_jax.errors import UserError
from sft_jax.run.checkpoints import Checkpoints, Restored
from sft_jax.runtime import processes
from sft_jax.runtime.files import digest, write_bytes, write_json, write_rows, write_text
from sft_jax.tasks import monitor_of

# Keys that may change when a run is resumed, because they do not affect the steps done so far.
RESUMABLE_KEYS = {
    "epochs",
    "save_minutes",
    "compare_with_scratch",
    "data.dir",
    "data.download",
    "data.placement",
    "data.allow_overlap",
    "regularization.early_stopping",
}
RESUMABLE_GROUPS = ("logging.", "evaluation.", "report.")


@dataclasses.dataclass(frozen=True)
class Run:
    """Paths within a run's folder, which of several processes only the primary one reads and writes."""

    folder: Path

    @property
    def writable(self) -> bool:
        """Whether this process is the one that writes to the folder."""
        return processes.is_primary()

    def on_primary(self, call: Callable[[], Any]) -> Any:
        """Calls `call` in the process that writes; returns its JSON-serialisable result, or its UserError, in all."""
        return processes.on_primary(call)

    @property
    def config_file(self) -> Path:
        """The resolved configuration, versions, devices and command line."""
        return self.folder / "config.json"

    @property
    def dataset_file(self) -> Path:
        """The classes and the images in each split."""
        return self.folder / "dataset.json.gz"

    @property
    def metrics_file(self) -> Path:
        """One JSON object per epoch."""
        return self.folder / "metrics.jsonl"

    @property
    def results_file(self) -> Path:
        """The test metrics of the best checkpoint."""
        return self.folder / "results.json"

    @property
    def report_file(self) -> Path:
        """The HTML report."""
        return self.folder / "report.html"

    @property
    def log_file(self) -> Path:
        """The console output."""
        return self.folder / "train.log"

    @property
    def checkpoints(self) -> Checkpoints:
        """The latest checkpoints and the best one."""
        return Checkpoints(self.folder / "checkpoints")

    def exists(self) -> bool:
        """Returns whether a run was started in the folder."""
        return self.config_file.exists()

    @contextlib.contextmanager
    def claimed(self, config: ConfigDict, *, resume: bool) -> Iterator[None]:
        """Locks the folder against other runs. Raises UserError, in all processes, as `check_use` does."""
        with contextlib.ExitStack() as lock:

            def claim() -> None:
                lock.enter_context(self._locked())
                self._check_content(config, resume=resume)

            self.on_primary(claim)
            yield

    def check_use(self, config: ConfigDict, *, resume: bool) -> None:
        """Raises UserError if `config` cannot continue the run in the folder, or the folder is locked or read-only.

        It does nothing in processes that do not write.
        """
        if not self.writable:
            return
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
                f"another process is training in {self.folder}; wait for it, stop it, or use another --workdir"
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
                raise UserError(f"--workdir {self.folder} is a file; give a folder")
            return
        if not resume:
            raise UserError(
                f"{self.folder} already contains a run; add --resume to continue it, or use another --workdir"
            )
        old, new = _settings(self.config()), _settings(config)
        changed = [
            f"{key} (was {old[key]!r}, now {new[key]!r})"
            for key in new
            if old[key] != new[key] and not self._may_change(key, old[key], new[key])
        ]
        if changed:
            raise UserError(
                f"{self.folder} was started with another config; resume it with the same one, or start a new run from "
                f"its weights with --config.init={self.folder} and another --workdir; changed: {', '.join(changed)}"
            )

    def _may_change(self, key: str, old: Any, new: Any) -> bool:
        if key == "data.source":
            # The files are compared with the record.
            return self.dataset_file.exists() and _is_path(old) and _is_path(new) and _kind(old) == _kind(new)
        return key in RESUMABLE_KEYS or key.startswith(RESUMABLE_GROUPS)

    def config(self) -> ConfigDict:
        """Returns the run's current configuration. Raises UserError if it cannot be read."""
        return complete(flatten(self.record()["config"]))

    def record(self) -> dict[str, Any]:
        """Returns config.json: config, versions, devices, command. Raises UserError if it cannot be read."""
        try:
            record = json.loads(self.config_file.read_text())
            flatten(record["config"])
            # Early versions wrote no digest.
            expected = record.pop("digest", None)
        except FileNotFoundError:
            raise UserError(f"{self.folder} contains no run: it has no {self.config_file.name}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # not our file, or a damaged one
            raise UserError(f"{self.config_file} cannot be read: {type(error).__name__}: {error}") from None
        if expected is not None and digest({}, record) != expected:
            raise UserError(f"{self.config_file} was modified after it was written; restore the original file")
        return record

    def dataset_record(self) -> Record | None:
        """Returns the record of the run's images; None before the run starts. Raises UserError if it cannot be read."""
        try:
            contents = json.loads(gzip.decompress(self.dataset_file.read_bytes()))
            expected = contents.pop("digest")
            if digest({}, contents) != expected:
                raise ValueError("it was modified after it was written")
            return Record.from_json(contents)
        except FileNotFoundError:
            return None
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.dataset_file}, the record of the images in each split, cannot be read: "
                f"{type(error).__name__}: {error}"
            ) from None

    def write_dataset_record(self, record: Record) -> None:
        """Records the images of a new run. Raises UserError if it cannot be written."""
        contents = record.to_json()
        text = json.dumps(contents | {"digest": digest({}, contents)}, separators=(",", ":"))
        # Without a timestamp, so that equal records are identical files.
        write_bytes(self.dataset_file, gzip.compress(text.encode(), mtime=0))

    def write_rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """Writes metrics.jsonl. Raises UserError, in all processes, if it cannot be written."""
        self.on_primary(lambda: write_rows(self.metrics_file, rows))

    def rows(self) -> list[dict[str, Any]]:
        """Returns metrics.jsonl, empty before the end of the first epoch. Raises UserError if it cannot be read."""
        try:
            return [json.loads(line) for line in self.metrics_file.read_text().splitlines()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise UserError(f"{self.metrics_file} cannot be read: {error}") from None

    def results(self) -> dict[str, Any] | None:
        """Returns results.json, None before the run is finished. Raises UserError if it cannot be read."""
        try:
            return json.loads(self.results_file.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.results_file} cannot be read: {error}") from None

    def write_results(self, results: dict[str, Any]) -> None:
        """Writes results.json. Raises UserError, in all processes, if it cannot be written."""
        self.on_primary(lambda: write_json(self.results_file, results))

    def restored(self, which: str) -> Restored:
        """Restores the "best" or "latest" checkpoint. Raises UserError if there is none, or none that can be read."""
        restored = self.checkpoints.restore(which)
        if restored is None:
            raise UserError(
                f"{self.folder} has no {which} checkpoint yet because its first epoch is not finished; "
                f"continue the run with --resume"
            )
        return restored

    def latest_metadata(self) -> dict[str, Any]:
        """Returns the latest checkpoint's metadata, empty if there is none. Raises UserError if none can be read."""
        restored = self.checkpoints.restore("latest")
        return {} if restored is None else restored.metadata

    def write_config(self, config: ConfigDict, **facts: Any) -> None:
        """Records the configuration, package versions and further `facts`. Raises UserError if it cannot be written."""
        packages = ("jax", "flax", "optax", "orbax-checkpoint")
        versions = {"sft-jax": sft_jax.__version__} | {name: importlib.metadata.version(name) for name in packages}
        # The digest is of the record as it will be read; JSON has no tuples.
        record = json.loads(json.dumps({"config": config.to_dict(), "versions": versions, **facts}, default=str))
        write_json(self.config_file, record | {"digest": digest({}, record)})

    def update_config(self, config: ConfigDict, **facts: Any) -> Path | None:
        """Records the configuration of a resumed run if it has changed.

        Returns:
          the backup of the previous record, config.1.json or the next free number; None if nothing has changed.

        Raises:
          UserError: the record cannot be read or written.
        """
        if _settings(self.config()) == _settings(config):
            return None
        numbered = (self.config_file.with_suffix(f".{number}.json") for number in itertools.count(1))
        kept = next(path for path in numbered if not path.exists())
        # The backup comes first, so that there is a record at any time.
        write_text(kept, self.config_file.read_text())
        self.write_config(config, **facts)
        return kept


def _kind(source: str) -> str:
    return source.partition(":")[0]


def _is_path(source: str) -> bool:
    """Returns whether a `data.source` is a path, which may be moved."""
    return _kind(source) in SOURCES and SOURCES[_kind(source)].is_path


def _settings(config: ConfigDict) -> dict[str, Any]:
    """Returns the values of all keys, with the default monitor resolved to its name."""
    return flatten(config) | {"monitor": monitor_of(config).name}
