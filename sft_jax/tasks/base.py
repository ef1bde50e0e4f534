"""What a task is: everything that training, evaluation, the search and the console need to know of what is learnt."""

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import numpy as np
from ml_collections import ConfigDict

from sft_jax import data
from sft_jax.data import Dataset

# Arrays by name, each with the examples on its first axis.
Batch = dict[str, jax.Array]
# (batch, key, position of its first example in the whole batch, size of the whole batch) -> the network's inputs and
# the targets.
Augment = Callable[[Batch, jax.Array, jax.Array, int], Batch]
Preprocess = Callable[[Batch], Batch]


@dataclasses.dataclass(frozen=True)
class Monitor:
    """A figure of the validation split that may choose the best epoch.

    Attributes:
      name: of the figure in metrics.jsonl, and of the config's `monitor`: as "val_accuracy".
      words: the same for people.
      lower_is_better: as of a loss.
      percent: whether it is shown in per cent.
    """

    name: str
    words: str
    lower_is_better: bool = False
    percent: bool = True

    @property
    def figure(self) -> str:
        """The name of the figure in `Task.summarize`."""
        return self.name.removeprefix("val_")

    def score(self, value: float) -> float:
        """Turns a value into one that is better the higher it is; a second call turns it back."""
        return -value if self.lower_is_better else value

    def rank(self, figures: Mapping[str, Any]) -> float:
        """Returns the score among the figures of a split, see `Task.summarize`; the lowest where it is not finite."""
        found = self.score(figures[self.figure])
        return found if math.isfinite(found) else -math.inf

    @property
    def worst(self) -> float:
        """The score of a network that is of no use."""
        return -math.inf if self.lower_is_better else 0.0

    def shown(self, value: float | None, digits: int = 2) -> str:
        """Formats a value: in per cent with `digits` decimals, else with four."""
        if value is None:
            return "-"
        return f"{value:.{digits}%}" if self.percent else f"{value:.4f}"


class Task(abc.ABC):
    """What is learnt: from which inputs to which targets, with which loss, and how good it is.

    A task is immutable and knows neither network nor devices. It is made by `create`; `tasks.TASKS` lists them by the
    config's `task`.

    Attributes:
      inputs: names of the arrays of a batch that the network reads.
      targets: names of those that the loss reads.
      monitors: figures that may choose the best epoch, by name; the first is the task's own, and "val_loss" is among
        them. An epoch's row in metrics.jsonl has them all.
      outputs: the size of the network's head.
    """

    inputs: ClassVar[tuple[str, ...]] = ("image",)
    targets: ClassVar[tuple[str, ...]]
    monitors: ClassVar[Mapping[str, Monitor]]
    outputs: int

    @classmethod
    @abc.abstractmethod
    def create(cls, config: ConfigDict, dataset: Dataset) -> Self:
        """Makes the task of a configuration on a data set.

        Raises:
          UserError: a setting does not fit the data.
        """

    @classmethod
    def main(cls) -> Monitor:
        """Returns the task's own monitor."""
        return next(iter(cls.monitors.values()))

    def with_settings(self, config: ConfigDict) -> Self:
        """Returns the task with the values in `config` of those settings that a compiled program takes as arguments
        (`config.traced.TRACEABLE`): they may be traced scalars.
        """
        return self

    def facts(self) -> dict[str, Any]:
        """Returns what config.json records beside the configuration: the contents of files that it names."""
        return {}

    def check_facts(self, record: Mapping[str, Any], run: Path) -> None:  # noqa: B027  # most tasks have none
        """Raises UserError where `facts` are not those in `record`, the config.json of `run`, which is to go on."""

    # What happens to a batch on the device.

    def augment(self, config: ConfigDict, size: int) -> Augment:
        """Returns what makes the network's inputs of a training batch, from `config`, the part `data`.

        Of images: `data.augment` at `size` pixels; a task whose targets have places in the image moves them alike.
        """
        return data.of_image(data.make_augment(config, size))

    def preprocess(self, config: ConfigDict, size: int) -> Preprocess:
        """Returns what makes the network's inputs of a batch in evaluation."""
        return data.of_image(data.make_preprocess(config, size))

    @abc.abstractmethod
    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """Computes the training loss of each example, [n], from the network's outputs [n, ...] and the targets."""

    def loss_scale(self, batch: Batch, axis_name: str | None) -> jax.Array | None:
        """Computes a factor [] of the mean loss from the targets of the whole batch; None for 1."""
        return None

    def train_sums(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Computes sums over a training batch, for `train_figures`."""
        return {}

    @abc.abstractmethod
    def sums(self, outputs: jax.Array, batch: Batch, mask: jax.Array) -> Any:
        """Computes sums over one batch in evaluation.

        Args:
          outputs: of the network, [n, ...].
          batch: inputs and targets.
          mask: bool [n]; masked-out examples must not count, whatever they hold.

        Returns:
          a pytree with an attribute `total`, int32 [], the number of examples. Integer leaves are added exactly; leaves
          in floating point are kept step by step and added in float64 on the host, so that the result does not depend
          on how the steps were cut into compiled calls.
        """

    # What is said of the sums, on the host.

    def train_figures(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
        """Returns the figures of training that an epoch's row has beside `train_loss`, without "train_"."""
        return {}

    @abc.abstractmethod
    def summarize(self, sums: Any) -> dict[str, Any]:
        """Returns the figures of a split: those of all monitors, "count", and more."""

    def results(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what results.json says of the test split: here every figure with "test_" before its name."""
        return {f"test_{name}": value for name, value in figures.items()}

    @classmethod
    def conclusion(cls, results: Mapping[str, Any]) -> str:
        """Formats the results for the last line of a run."""
        return f"test {', '.join(cls._shown(results))} on {results['test_count']:,} examples"

    @classmethod
    def details(cls, results: Mapping[str, Any]) -> str:
        """Formats the results for the line of `python -m sft_jax.evaluate`."""
        return f"{', '.join(cls._shown(results))} on {results['test_count']:,} examples"

    @classmethod
    def _shown(cls, results: Mapping[str, Any]) -> list[str]:
        return [
            f"{monitor.figure} {monitor.shown(results[f'test_{monitor.figure}'])}" for monitor in cls.monitors.values()
        ]

    # What only some tasks can do.

    def closed_form_head(
        self, features: np.ndarray, targets: Mapping[str, np.ndarray], chosen_on: tuple[np.ndarray, Mapping] | None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Solves for a linear head on fixed features, as the start of training it.

        Args:
          features: float32 [n, views, channels] of the training examples.
          targets: of the same examples.
          chosen_on: features [m, channels] and targets of examples that choose the solution's settings; None to choose
            by cross-validation.

        Returns:
          kernel [channels, outputs] and bias [outputs]; None where the task has no such solution.
        """
        return None
