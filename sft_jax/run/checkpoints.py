"""Checkpoints on disk: the latest ones to resume from, and the best one, each verified when it is read.

Orbax writes each to a temporary folder and renames it when it is complete, so a killed save leaves the earlier ones
untouched. What is kept, and which one is valid, is decided here. Orbax's policies, AnyPreservationPolicy([LatestN(2),
BestN(...)]), do not know what is damaged: where step 6 is, and a run that goes on from 3 saves 4, they keep 6 and
remove 3. Its manager leaves 4 out unless forced to, and refuses to save a step that is there (0.11.20 and 0.12.8).
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
from sft_jax.runtime.files import digest

FORMAT = 1
# Two of the latest: should the newer one be damaged, the older is one save back.
KEEP = {"latest": 2, "best": 1}

# What a failed save left is removed this often, with so much time in between.
REMOVALS, REMOVAL_SECONDS = 10, 0.05

# Orbax reports every phase of every save; what goes wrong it raises, too. Of several arrays that cannot be read asyncio
# reports all but the first.
for _logger in ("absl", "asyncio"):
    logging.getLogger(_logger).setLevel(logging.CRITICAL)
_unraisable = sys.unraisablehook


def _without_abandoned(found: Any) -> None:
    """Of several arrays that cannot be written tensorstore reports all but the first to an event loop that is closed,
    and Python prints a traceback of each.
    """
    if not (isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == "Event loop is closed"):
        _unraisable(found)


sys.unraisablehook = _without_abandoned


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint as it was saved.

    Attributes:
      step: of the training, which it was saved after.
      arrays: host arrays by name.
      metadata: what was saved with them.
      notices: lines about newer checkpoints that had to be passed over.
      folder: where it lies.
    """

    step: int
    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]
    notices: tuple[str, ...]
    folder: Path

    def check(self, expected: Mapping[str, Any]) -> None:
        """Raises UserError unless the arrays have just the names, shapes and dtypes of `expected`.

        That holds arrays or `jax.ShapeDtypeStruct`s.
        """
        found, wanted = (
            {key: f"{leaf.dtype}{list(leaf.shape)}" for key, leaf in part.items()} for part in (self.arrays, expected)
        )
        problems = mismatches(found, wanted)
        if problems:
            raise UserError("\n  ".join([f"checkpoint {self.folder} does not fit this config:", *problems]))


class InvalidError(Exception):
    """A checkpoint that cannot be trusted; the message says why."""


class Checkpoints:
    """The checkpoints "latest" and "best" of a run, in folders of these names below `directory`."""

    def __init__(self, directory: Path):
        self._directory = Path(directory).absolute()

    def save(self, name: str, step: int, arrays: Mapping[str, jax.Array], metadata: Mapping[str, Any]) -> None:
        """Writes a checkpoint and returns when it is complete on disk; then removes those it replaces.

        Args:
          name: "latest" or "best".
          step: of the training. A step that was saved before is replaced.
          arrays: fully replicated or on one device.
          metadata: anything JSON can hold.

        Raises:
          UserError: it cannot be written; those before it are as they were.
        """
        host = jax.device_get(dict(arrays))
        empty = {key: [str(array.dtype), array.shape] for key, array in host.items() if array.size == 0}
        contents = {"step": step, "metadata": dict(metadata), "empty": empty}
        facts = {"format": FORMAT, "digest": digest(host, contents), "contents": contents}
        filled = {key: array for key, array in host.items() if key not in empty}
        earlier = self._found(name)
        folder = self._directory / name
        attempts = [attempt for found, attempt, _ in earlier if found == step]
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
        except (OSError, ValueError) as error:  # tensorstore has ValueError for a full disk
            _remove_unfinished(folder)
            raise UserError(
                f"checkpoint {target} cannot be written, those before it are kept: {_reason(error)}"
            ) from error
        replaced = [path for found, _, path in earlier if found == step]
        newer = [path for found, _, path in earlier if found > step]
        older = [path for found, _, path in earlier if found < step]
        # Newer ones were passed over when the run was resumed: they go before those it came from.
        others = newer + older
        for stale in replaced + others[: max(0, len(others) + 1 - KEEP[name])]:
            shutil.rmtree(stale)

    def holds(self, name: str) -> bool:
        """Whether there is any checkpoint called "latest" or "best", valid or not."""
        return bool(self._found(name))

    def restore(self, name: str) -> Restored | None:
        """Reads the newest valid checkpoint called "latest" or "best"; damaged ones are named in its `notices` and left
        where they are. None where none was ever saved.

        Raises:
          UserError: there are some, but none is valid.
        """
        notices: list[str] = []
        for _, _, folder in reversed(self._found(name)):
            try:
                restored = _read(folder)
            except InvalidError as error:
                notices.append(f"checkpoint {folder} is damaged and was passed over: {error}")
                continue
            return dataclasses.replace(restored, notices=tuple(notices))
        if notices:
            raise UserError(f"no valid {name} checkpoint is left; {'; '.join(notices)}")
        return None

    def _found(self, name: str) -> list[tuple[int, int, Path]]:
        """(step, attempt, folder) from the oldest to the newest; Orbax's temporary folders have other names."""
        folder = self._directory / name
        entries = folder.iterdir() if folder.is_dir() else iter(())
        matches = ((re.fullmatch(r"(\d+)(?:\.(\d+))?", entry.name), entry) for entry in entries if entry.is_dir())
        return sorted((int(match[1]), int(match[2] or 0), entry) for match, entry in matches if match)


def _checkpointer() -> ocp.Checkpointer:
    # By one process, of however many: Orbax would wait for the others at every save and restore.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix="alone"
    )
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone))
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _remove_unfinished(folder: Path) -> None:
    """What killed or failed saves left behind: a network's size each."""
    for _ in range(REMOVALS):
        leftovers = list(folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"))
        if not leftovers:
            return
        for leftover in leftovers:
            shutil.rmtree(leftover, ignore_errors=True)
        # Of a save that failed, Orbax's other threads may still be writing.
        time.sleep(REMOVAL_SECONDS)


def _read(folder: Path) -> Restored:
    if not (folder / "facts").is_dir():
        raise InvalidError("it is incomplete")
    try:
        with _checkpointer() as checkpointer:
            facts = checkpointer.restore(folder, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))["facts"]
            if facts["format"] != FORMAT:
                raise UserError(
                    f"checkpoint {folder} has format {facts['format']}, this version reads format {FORMAT}; "
                    f"use the version of sft-jax that wrote it"
                )
            arrays = checkpointer.restore(folder, args=ocp.args.Composite(arrays=ocp.args.PyTreeRestore()))["arrays"]
        contents = facts["contents"]
        arrays = {key: np.asarray(leaf) for key, leaf in arrays.items()}
        # The first checkpoints of this format did not say.
        arrays |= {key: np.zeros(shape, jnp.dtype(dtype)) for key, (dtype, shape) in contents.get("empty", {}).items()}
        if digest(arrays, contents) != facts["digest"]:
            raise InvalidError("its contents are not what was saved")
        return Restored(contents["step"], arrays, contents["metadata"], (), folder)
    except (UserError, InvalidError):
        raise
    except Exception as error:  # tensorstore and Orbax raise many kinds for damaged files
        raise InvalidError(f"it cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The first line, without the specification that tensorstore appends (a thousand characters)."""
    line = next(iter(str(error).splitlines()), "").partition(" [tensorstore_spec=")[0]
    return f"{type(error).__name__}: {line}"
