"""Observers of a run: loggers, reports, and any others passed to `train`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

from sft_jax.errors import reason
from sft_jax.run.folder import Run
from sft_jax.run.progress import Progress
from sft_jax.training.experiment import Experiment
from sft_jax.training.phase_programs import Variables


class Observer(Protocol):
    """Receives the events of a run; the default methods ignore them.

    It is entered as a context manager before `begin` and exited when the run ends, with the exception if the run fails.
    Every process has its own observers and calls all of them; only one should write. An observer cannot stop a run:
    if a method raises, the observer is dropped and the console reports it.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        return

    def begin(self, experiment: Experiment, run: Run, progress: Progress, say: Callable[[str], None]) -> None:
        """Called when the run starts, or resumes from `progress`; `say` prints a line on the console."""
        return

    def epoch(self, progress: Progress) -> None:
        """Called after each epoch; its row of metrics.jsonl is the last of `progress.rows`."""
        return

    def best(self, weights: Variables, figures: Mapping[str, Any], progress: Progress) -> None:
        """Called when `weights` are the best so far; `figures` are their validation metrics."""
        return

    def end(self, weights: Variables, results: Mapping[str, Any], progress: Progress) -> None:
        """Called at the end of the run with its best weights and the contents of results.json."""
        return


class Audience:
    """The observers of a run. One that raises is dropped, and `say` is told."""

    def __init__(self, observers: Sequence[Observer], say: Callable[[str], None]):
        self._observers, self._say = list(observers), say

    def tell(self, event: str, *what: Any) -> None:
        """Calls the method `event` of every observer."""
        for observer in list(self._observers):
            try:
                getattr(observer, event)(*what)
            except Exception as error:
                self._observers.remove(observer)
                self._say(f"notice: {type(observer).__name__} failed, the run continues without it: {reason(error)}")


# Maps a configuration to the observers of its run. Raises UserError if an observer cannot support the configuration.
Observers = Callable[[Any], list[Observer]]


def nobody(config: Any) -> list[Observer]:
    """Returns no observers, for benchmarks."""
    return []
