"""Saves the checkpoints of a running training, and resumes from the latest one."""

import dataclasses
import time
from typing import Any

import jax

from sft_jax.data.preprocess import Preprocess
from sft_jax.run.folder import Run
from sft_jax.run.progress import Progress
from sft_jax.training.experiment import Experiment
from sft_jax.training.phase_programs import PhasePrograms
from sft_jax.training.phases import phase_of
from sft_jax.training.state import TrainState, from_arrays, to_arrays


@dataclasses.dataclass(frozen=True)
class Continued:
    """The point that a resumed run continues from.

    Attributes:
      state: the saved state, on the host.
      progress: progress of the run at that state.
      programs: programs of the phase that the state belongs to; `prepare` was not called yet.
      notices: lines about checkpoints that had to be skipped.
    """

    state: TrainState
    progress: Progress
    programs: PhasePrograms
    notices: tuple[str, ...]


class Saves:
    """The checkpoints of `experiment` in the folder of `run`, see `Checkpoints`."""

    def __init__(self, experiment: Experiment, run: Run):
        self._experiment, self._checkpoints = experiment, run.checkpoints
        self._saved_at = time.monotonic()

    @property
    def overdue(self) -> bool:
        """Whether the latest save is more than `config.save_minutes` ago."""
        return time.monotonic() - self._saved_at > 60 * self._experiment.config.save_minutes

    def save(self, name: str, step: int, what: Any, progress: Progress) -> None:
        """Saves `what`, a state or weights after `step` steps, as "latest" or "best". Raises UserError if it cannot."""
        dataset = self._experiment.dataset
        metadata = {
            "class_names": list(dataset.class_names),
            "progress": progress.to_json(),
        }
        if dataset.reading is None:
            preprocess = Preprocess.of_config(self._experiment.config.data, dataset.square)
            metadata["preprocess"] = preprocess.to_json()
        self._checkpoints.save(name, step, to_arrays(what), metadata)
        if name == "latest":
            self._saved_at = time.monotonic()

    def restore(self) -> Continued | None:
        """Restores the latest checkpoint; None if there is none. Raises UserError if it does not fit the experiment."""
        restored = self._checkpoints.restore_in_all("latest")
        if restored is None:
            return None
        progress = Progress.from_json(restored.metadata["progress"])
        # Between two epochs the state still belongs to the phase of the earlier one.
        epoch = progress.epoch - (progress.epoch > 0 and not progress.epoch_steps)
        network = self._experiment.network
        programs = PhasePrograms(self._experiment, phase_of(self._experiment.phases, epoch))
        like = jax.eval_shape(programs.new_state, network.params, network.batch_stats)
        restored.check(to_arrays(like))
        return Continued(from_arrays(like, restored.arrays), progress, programs, restored.notices)
