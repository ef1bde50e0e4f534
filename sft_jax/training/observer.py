"""Who is told what happens in a run: logs, reports, and whatever else the caller of `train` hands in."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

from sft_jax.run.folder import Run
from sft_jax.run.progress import Progress
from sft_jax.training.experiment import Experiment
from sft_jax.training.phase_programs import Variables


class Observer(Protocol):
    """Is told what happens in a run; this one does nothing about it.

    It is entered as a context manager before `begin` and left when the run ends, by an exception where it does not come
    to its end. Of several processes each has its own: all are told alike, one of them should write. None of its
    methods may end a run: one that raises is left out from then on, and the console says so.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        return

    def begin(self, experiment: Experiment, run: Run, progress: Progress, say: Callable[[str], None]) -> None:
        """The run starts, or goes on from `progress`; `say` prints a line on the console."""
        return

    def epoch(self, progress: Progress) -> None:
        """An epoch is done; its row of metrics.jsonl is the last of `progress.rows`."""
        return

    def best(self, weights: Variables, figures: Mapping[str, Any], progress: Progress) -> None:
        """These weights are the best so far, with these figures of the validation split."""
        return

    def end(self, weights: Variables, results: Mapping[str, Any], progress: Progress) -> None:
        """The run is done: its best weights, and what results.json holds."""
        return


# Of a configuration: those of its run. Raises UserError where one of them cannot do what the configuration asks for.
Observers = Callable[[Any], list[Observer]]


def nobody(config: Any) -> list[Observer]:
    """Returns no observers, as benchmarks want it."""
    return []
