"""The task interface: everything that training, evaluation, the search and the console need to know about a task."""

import abc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import jax
import numpy as np
from ml_collections import ConfigDict

from sft_jax import data
from sft_jax.data import Dataset
from sft_jax.data.texts.reading import TextReading
from sft_jax.errors import UserError
from sft_jax.tasks.decoding import Decoder
from sft_jax.tasks.monitor import Monitor

# Arrays by name, each with the examples on its first axis.
Batch = dict[str, jax.Array]
# (batch, key, position of its first example in the global batch, size of the global batch) -> the network's inputs and
# the targets.
Augment = Callable[[Batch, jax.Array, jax.Array, int], Batch]
Preprocess = Callable[[Batch], Batch]


class Kept(NamedTuple):
    """The outputs of a whole split, for tasks whose metrics are no sums.

    Attributes:
      total: number of examples.
      outputs: float32 [n, ...], in the order of the split.
      targets: targets by name, each [n, ...].
    """

    total: int
    outputs: np.ndarray
    targets: Mapping[str, np.ndarray]


class Task(abc.ABC):
    """A task to learn: its inputs, targets, loss and metrics.

    A task is immutable and independent of network and devices. It is made by `create`; `tasks.TASKS` lists the tasks
    by the config's `task`.

    Attributes:
      inputs: names of the batch's arrays that the network reads.
      targets: names of the batch's arrays that the loss reads.
      monitors: metrics that can select the best epoch, by name; the first is the main one, and "val_loss" is included.
        An epoch's row in metrics.jsonl contains all of them.
      outputs: the size of the network's head.
      unit: what an example is called.
      labelling: how examples are labelled, a key of `data.sources.labelling.LABELLINGS`.
      groups: of the configuration, of settings that only some tasks have, e.g. "segmentation".
      refused: settings that have no meaning for the task, and why; they must keep their defaults.
      dense: whether outputs are those of pixels, [n, height, width, outputs], so that the network needs such a head.
      keeps_outputs: whether evaluation keeps all outputs of a split, as metrics that are no sums need.
    """

    inputs: ClassVar[tuple[str, ...]] = ("image",)
    targets: ClassVar[tuple[str, ...]]
    monitors: ClassVar[Mapping[str, Monitor]]
    outputs: int
    unit: ClassVar[str] = "image"
    labelling: ClassVar[str] = "class"
    groups: ClassVar[tuple[str, ...]] = ()
    refused: ClassVar[Mapping[str, str]] = {}
    keeps_outputs: ClassVar[bool] = False
    dense: ClassVar[bool] = False

    @classmethod
    @abc.abstractmethod
    def create(cls, config: ConfigDict, dataset: Dataset) -> Self:
        """Makes the task of a configuration on a dataset.

        Raises:
          UserError: a setting does not fit the data.
        """

    @classmethod
    def main(cls) -> Monitor:
        """Returns the task's main monitor."""
        return next(iter(cls.monitors.values()))

    def with_settings(self, config: ConfigDict) -> Self:
        """Returns the task with the traceable settings (`config.traced.TRACEABLE`) of `config`.

        They may be traced scalars, because compiled programs take them as arguments.
        """
        return self

    def facts(self) -> dict[str, Any]:
        """Returns what config.json records in addition to the configuration: contents of the files that it names."""
        return {}

    def check_facts(self, record: Mapping[str, Any], run: Path) -> None:  # noqa: B027  # most tasks have none
        """Raises UserError if `facts` differ from those in `record`, the config.json of `run`, which is resumed."""

    @classmethod
    def reading(cls, config: ConfigDict, tokenizer: Callable[[], str | None]) -> TextReading | None:
        """Returns how texts are read, with what `tokenizer` returns; None if it reads images.

        Raises:
          UserError: there is no tokenizer, or it does not fit the network.
        """
        return None

    # On the device, per batch.

    def augment(self, config: ConfigDict, size: int) -> Augment:
        """Returns the function that augments a training batch, according to `config`, the group `data`.

        Images go through `data.augment` at `size` pixels; tasks with spatial targets must transform these as well.
        """
        return data.of_image(data.make_augment(config, size))

    def preprocess(self, config: ConfigDict, size: int) -> Preprocess:
        """Returns the function that preprocesses a batch for evaluation."""
        return data.of_image(data.make_preprocess(config, size))

    def views(self, config: ConfigDict, size: int, *, crops: int, flips: bool) -> list[Preprocess]:
        """Returns the functions that preprocess a batch for test-time augmentation, `preprocess` first.

        Args:
          config: the group `data`.
          size: of the network's input in pixels.
          crops: 1, or 5 for the centre and the corners.
          flips: whether to add the mirror image of each crop.
        """

        def view(place: tuple[float, float], mirrored: bool) -> Preprocess:
            plain = data.make_preprocess(config, size, place)
            return data.of_image(data.mirrored(plain) if mirrored else plain)

        return [view(*each) for each in data.views(crops, flips=flips)]

    @abc.abstractmethod
    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """Computes the training loss per example, [n], from the network's outputs [n, ...] and the targets."""

    def loss_scale(self, batch: Batch, axis_name: str | None) -> jax.Array | None:
        """Computes a factor [] for the mean loss from the targets of the global batch; None for 1."""
        return None

    def train_sums(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Computes sums over a training batch, for `train_figures`."""
        return {}

    def sums(self, outputs: jax.Array, batch: Batch, mask: jax.Array) -> Any:
        """Computes sums over an evaluation batch; tasks with `keeps_outputs` have none.

        Args:
          outputs: the network's outputs, [n, ...].
          batch: inputs and targets.
          mask: bool [n]; masked-out examples must not affect the sums, even if they contain NaN.

        Returns:
          a pytree with an attribute `total`, int32 [], the number of examples. Integer leaves are added exactly;
          floating-point leaves are kept per step and added in float64 on the host, so that the result does not depend
          on the division of the steps into compiled calls.
        """
        raise NotImplementedError(type(self).__name__)

    # On the host.

    def train_figures(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
        """Returns the training metrics of an epoch's row besides `train_loss`, without the prefix "train_"."""
        return {}

    @abc.abstractmethod
    def summarize(self, sums: Any) -> dict[str, Any]:
        """Returns the metrics of a split, those of all monitors, "count" and others, from its sums or its `Kept`."""

    def results(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the test metrics for results.json; by default all metrics with the prefix "test_"."""
        return {f"test_{name}": value for name, value in figures.items()}

    @classmethod
    def figures_of(cls, results: Mapping[str, Any]) -> dict[str, Any]:
        """Inverts `results`: returns the test metrics in the form of `summarize`."""
        return {name.removeprefix("test_"): value for name, value in results.items()}

    @classmethod
    def conclusion(cls, results: Mapping[str, Any]) -> str:
        """Formats the results for the last line of a run."""
        return f"test {', '.join(cls._shown(results))} on {results['test_count']:,} examples"

    @classmethod
    def details(cls, results: Mapping[str, Any]) -> str:
        """Formats the results for the output of `python -m sft_jax.evaluate`."""
        return f"{', '.join(cls._shown(results))} on {results['test_count']:,} examples"

    @classmethod
    def _shown(cls, results: Mapping[str, Any]) -> list[str]:
        return [
            f"{monitor.figure} {monitor.shown(results[f'test_{monitor.figure}'])}" for monitor in cls.monitors.values()
        ]

    # In use.

    @classmethod
    def size_text(cls, config: ConfigDict, size: int) -> str:
        """Formats how large the network's inputs are; `size` is that of images in pixels."""
        return f"{size} px"

    def described(self) -> str:
        """Says what is learnt, for the plan of a run."""
        return f"{self.outputs} outputs"

    def learnt(self, validation: Mapping[str, Any] | None) -> dict[str, Any]:
        """Returns what predictions need besides the weights, for JSON; every checkpoint has it.

        Args:
          validation: the latest metrics of the validation split, see `summarize`; None before the first.
        """
        return {}

    def with_learnt(self, learnt: Mapping[str, Any]) -> Self:
        """Returns the task as a checkpoint had it, from its `learnt`."""
        return self

    @classmethod
    def released(
        cls, head: Mapping[str, np.ndarray], learnt: Mapping[str, Any]
    ) -> tuple[Mapping[str, np.ndarray], Mapping[str, Any]]:
        """Returns a trained head and `learnt` for use outside the run, where outputs need no further scaling.

        The head is "kernel" [channels, outputs] and "bias" [outputs].
        """
        return head, learnt

    def taken(self, head: Mapping[str, Any]) -> Mapping[str, Any]:
        """Inverts `released` for the head of another run of the task, which training starts from."""
        return head

    @classmethod
    def of_network(cls, names: Sequence[str], learnt: Mapping[str, Any]) -> Self:
        """Makes the task of a trained network in use, from the names of its outputs and what `released` returned.

        Raises:
          UserError: the task has no predictions.
        """
        raise UserError(f"{cls.__name__.lower()} has no predictions and no exports, only training and evaluation")

    def decoder(self) -> Decoder:
        """Makes the predictions of the network."""
        raise NotImplementedError(type(self).__name__)

    # Optional.

    def closed_form_head(
        self, features: np.ndarray, targets: Mapping[str, np.ndarray], chosen_on: tuple[np.ndarray, Mapping] | None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Solves for a linear head on fixed features, as the starting point for training it.

        Args:
          features: float32 [n, views, channels] of the training examples.
          targets: targets of the same examples.
          chosen_on: features [m, channels] and targets of the examples that select the solution's settings; None to
            select them by cross-validation.

        Returns:
          kernel [channels, outputs] and bias [outputs]; None if the task has no such solution.
        """
        return None
