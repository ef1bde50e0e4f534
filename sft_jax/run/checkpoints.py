"""Checkpoints on disk: the latest ones, for resuming, and the best one. They are verified when read.

Orbax writes each to a temporary folder and renames it once complete, so that a killed save does not affect earlier
ones. This module decides which ones to keep and which are valid. Orbax's policies, AnyPreservationPolicy([LatestN(2),
BestN(...)]), go by step numbers: if step 6 is damaged and a run resumed from step 3 saves step 4, they keep 6 and
remove 3. Its manager skips that save unless forced, and refuses to save an existing step (0.11.20 and 0.12.8).
"""

import dataclasses
import logging
import re
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from sft_jax.errors import UserError
from sft_jax.models.weights import mismatches
from sft_jax.runtime import processes
from sft_jax.runtime.files import digest

FORMAT = 1
# The second latest serves as a fallback if the newest is damaged.
KEEP = {"latest": 2, "best": 1}

# Attempts to remove the remains of a failed save, and the seconds between them.
REMOVALS, REMOVAL_SECONDS = 10, 0.05

# Orbax logs every phase of a save, and asyncio logs all but the first of several unreadable arrays; errors are raised
# anyway.
for _logger in ("absl", "asyncio"):
    logging.getLogger(_logger).setLevel(logging.CRITICAL)
_unraisable = sys.unraisablehook


def _without_abandoned(unraisable: Any) -> None:
    """Suppresses tracebacks of failed writes after the first one.

    tensorstore reports them to an event loop that is already closed, and Python prints a traceback for each.
    """
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
        _unraisable(unraisable)


sys.unraisablehook = _without_abandoned


@dataclasses.dataclass(frozen=True)
class Restored:
    """A restored checkpoint.

    Attributes:
      step: number of training steps before it was saved.
      arrays: host arrays by name.
      metadata: the metadata saved with them.
      notices: lines about newer checkpoints that had to be skipped.
      folder: its folder.
    """

    step: int
    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]
    notices: tuple[str, ...]
    folder: Path

    def check(self, expected: Mapping[str, Any]) -> None:
        """Raises UserError unless the arrays have exactly the names, shapes and dtypes of `expected`.

        The values of `expected` are arrays or `jax.ShapeDtypeStruct`s.
        """
        actual, wanted = (
            {key: f"{leaf.dtype}{list(leaf.shape)}" for key, leaf in part.items()} for part in (self.arrays, expected)
        )
        problems = mismatches(actual, wanted)
        if problems:
            raise UserError("\n  ".join([f"checkpoint {self.folder} does not fit this config:", *problems]))


class InvalidError(Exception):
    """A checkpoint is invalid; the message says why."""


class Checkpoints:
    """The checkpoints "latest" and "best" of a run, in subfolders of these names in `directory`.

    Of several processes the primary one writes and reads them, and all must call `save` and `restore_in_all`.
    """

    def __init__(self, directory: Path):
        self._directory = Path(directory).absolute()

    def save(self, name: str, step: int, arrays: Mapping[str, jax.Array], metadata: Mapping[str, Any]) -> None:
        """Writes a checkpoint, waits until it is complete on disk, and removes those it replaces.

        Args:
          name: "latest" or "best".
          step: number of training steps so far. An existing checkpoint of this step is replaced.
          arrays: fully replicated or on one device.
          metadata: anything JSON-serialisable.

        Raises:
          UserError: it cannot be written; earlier ones are unchanged.
        """
        processes.on_primary(lambda: self._save(name, step, arrays, metadata))

    def _save(self, name: str, step: int, arrays: Mapping[str, jax.Array], metadata: Mapping[str, Any]) -> None:
        host = jax.device_get(dict(arrays))
        empty = {key: [str(array.dtype), array.shape] for key, array in host.items() if array.size == 0}
        contents = {"step": step, "metadata": dict(metadata), "empty": empty}
        facts = {"format": FORMAT, "digest": digest(host, contents), "contents": contents}
        filled = {key: array for key, array in host.items() if key not in empty}
        earlier = self._folders(name)
        folder = self._directory / name
        attempts = [attempt for saved, attempt, _ in earlier if saved == step]
        target = folder / (f"{step}.{max(attempts) + 1}" if attempts else str(step))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_unfinished(folder)
            with _checkpointer() as checkpointer:
                checkpointer.save(
                    target, args=ocp.args.Composite(arrays=ocp.args.PyTreeSave(filled), facts=ocp.args.JsonSave(facts))
                )
            if not (target / "facts").is_dir():
                raise OSError("nothing was written")
        except (OSError, ValueError) as error:  # tensorstore raises ValueError if the disk is full
            _remove_unfinished(folder)
            raise UserError(
                f"checkpoint {target} cannot be written, earlier ones are kept: {_reason(error)}"
            ) from error
        replaced = [path for saved, _, path in earlier if saved == step]
        newer = [path for saved, _, path in earlier if saved > step]
        older = [path for saved, _, path in earlier if saved < step]
        # Newer ones were skipped when the run was resumed: they are removed before those it came from.
        others = newer + older
        for stale in replaced + others[: max(0, len(others) + 1 - KEEP[name])]:
            shutil.rmtree(stale)

    def holds(self, name: str) -> bool:
        """Returns whether there is any checkpoint called `name`, valid or not."""
        return bool(self._folders(name))

    def restore(self, name: str) -> Restored | None:
        """Reads the newest valid checkpoint called "latest" or "best"; None if none was saved yet.

        Damaged ones are reported in its `notices` and not removed.

        Raises:
          UserError: all of them are damaged.
        """
        notices: list[str] = []
        for _, _, folder in reversed(self._folders(name)):
            try:
                restored = _read(folder)
            except InvalidError as error:
                notices.append(f"checkpoint {folder} is damaged and was skipped: {error}")
                continue
            return dataclasses.replace(restored, notices=tuple(notices))
        if notices:
            raise UserError(f"there is no valid {name} checkpoint; {'; '.join(notices)}")
        return None

    def restore_in_all(self, name: str) -> Restored | None:
        """Calls `restore` in the primary process and returns its result in all of them. Raises as `restore` does."""
        own: Restored | None = None
        with processes.all_or_none():
            if processes.is_primary():
                own = self.restore(name)
        facts = processes.all_gather_objects(own and [own.step, own.metadata, own.notices, str(own.folder)])[0]
        if facts is None:
            return None
        step, metadata, notices, folder = facts
        arrays = processes.broadcast(own.arrays if own else {})
        return Restored(step, arrays, metadata, tuple(notices), Path(folder))

    def _folders(self, name: str) -> list[tuple[int, int, Path]]:
        """Returns (step, attempt, folder) from oldest to newest; Orbax's temporary folders have other names."""
        folder = self._directory / name
        entries = folder.iterdir() if folder.is_dir() else iter(())
        matches = ((re.fullmatch(r"(\d+)(?:\.(\d+))?", entry.name), entry) for entry in entries if entry.is_dir())
        return sorted((int(match[1]), int(match[2] or 0), entry) for match, entry in matches if match)


def _checkpointer() -> ocp.Checkpointer:
    # Restricted to this process, or Orbax would wait for the others at every save and restore.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix="alone"
    )
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone))
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _remove_unfinished(folder: Path) -> None:
    """Removes the remains of killed or failed saves, each of which may be as large as the network."""
    for _ in range(REMOVALS):
        leftovers = list(folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"))
        if not leftovers:
            return
        for leftover in leftovers:
            shutil.rmtree(leftover, ignore_errors=True)
        # Other threads of a failed save may still be writing.
        time.sleep(REMOVAL_SECONDS)


def _read(folder: Path) -> Restored:
    if not (folder / "facts").is_dir():
        raise InvalidError("it is incomplete")
    try:
        with _checkpointer() as checkpointer:
            facts = checkpointer.restore(folder, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))["facts"]
            if facts["format"] != FORMAT:
                raise UserError(
                    f"checkpoint {folder} has format {facts['format']}, but this version reads format {FORMAT}; "
                    f"use the version of sft-jax that wrote it"
                )
            arrays = checkpointer.restore(folder, args=ocp.args.Composite(arrays=ocp.args.PyTreeRestore()))["arrays"]
        contents = facts["contents"]
        arrays = {key: np.asarray(leaf) for key, leaf in arrays.items()}
        # Early checkpoints of this format have no "empty".
        arrays |= {key: np.zeros(shape, jnp.dtype(dtype)) for key, (dtype, shape) in contents.get("empty", {}).items()}
        if digest(arrays, contents) != facts["digest"]:
            raise InvalidError("its contents have changed since it was saved")
        return Restored(contents["step"], arrays, contents["metadata"], (), folder)
    except (UserError, InvalidError):
        raise
    except Exception as error:  # tensorstore and Orbax raise many exception types for damaged files
        raise InvalidError(f"it cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Returns the error's first line, without the spec of a thousand characters that tensorstore appends."""
    line = next(iter(str(error).splitlines()), "").partition(" [tensorstore_spec=")[0]
    return f"{type(error).__name__}: {line}"
