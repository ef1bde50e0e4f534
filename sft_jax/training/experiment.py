"""What a configuration trains on what: the network, the task, the data on the devices, their evaluation, the phases."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from sft_jax import data, models, tasks
from sft_jax.config import flatten
from sft_jax.data.dataset import Split
from sft_jax.data.loader import Loader
from sft_jax.data.sampling import epoch_order
from sft_jax.runtime.devices import AXIS, Devices
from sft_jax.runtime.files import digest
from sft_jax.tasks import Task
from sft_jax.training import phases
from sft_jax.training.evaluator import Evaluator
from sft_jax.training.state import Arrays

# The seed's key with this is that of training. New weights have its keys with 0, 1, 2, ..., as nnx.Rngs counts.
TRAINING = 1 << 31


def fingerprint(config: ConfigDict, dataset: data.Dataset, task: Task) -> dict[str, Any]:
    """Returns what all processes of a run must have in common; their places on disk need not be the same."""
    settings = {key: value for key, value in flatten(config).items() if key not in {"init", "data.dir"}}
    targets = {
        f"{target}s of the {name} images": digest({f"{target}s": getattr(dataset, name).targets[target]}, {})[:8]
        for name in ("train", "validation", "test")
        for target in task.targets
    }
    return (
        settings
        | targets
        | {"class names": list(dataset.class_names), "task": str(task), "version of jax": jax.__version__}
    )


class Experiment:
    """One configuration on its data set and devices. Nothing here changes while it is trained.

    Attributes:
      config, dataset, devices: as given.
      task: what is learnt.
      monitor: the figure that chooses the best epoch.
      build: the network's constructor, see `models.builder`.
      network: the network as a function.
      phases: of the training, see `phases.phases`.
      steps_per_epoch: full batches of an epoch.
      preprocess: from a batch of the data set to the network's inputs in evaluation.
      evaluate: of parameters and batch statistics on a loader.
      key: of all that is random in training, replicated.
      scored_on_validation: whether the validation images score the settings, and may choose none of them.

    Raises:
      UserError: the configuration does not fit the data or the network.
    """

    def __init__(
        self, config: ConfigDict, dataset: data.Dataset, devices: Devices, *, scored_on_validation: bool = False
    ):
        self.config, self.dataset, self.devices = config, dataset, devices
        self.scored_on_validation = scored_on_validation
        self.task, self.monitor = tasks.make(config, dataset), tasks.monitor_of(config)
        self.build = models.builder(
            config.model,
            self.task.outputs,
            precision=config.precision,
            axis_name=AXIS,
            stochastic_depth=config.regularization.stochastic_depth,
        )
        self.network = models.Network.abstract(self.build, self.task.inputs)
        self.phases = phases.phases(config, self.network)
        self.steps_per_epoch = len(self.order(epoch=0))
        self.preprocess = self.task.preprocess(config.data, config.data.size)
        self.evaluate = self.evaluator()
        self.key = devices.replicate(jax.random.fold_in(jax.random.key(config.seed), TRAINING))

    @functools.cached_property
    def train_loader(self) -> Loader:
        """The training split; it goes to the devices when it is first asked for."""
        return Loader(self.dataset.train, self.devices)

    @functools.cached_property
    def validation_loader(self) -> Loader:
        """The validation split, likewise."""
        return Loader(self.dataset.validation, self.devices)

    def order(self, epoch: int) -> np.ndarray:
        """Returns the rows of the training split in the order of an epoch, int32 [steps, batch]."""
        config, train = self.config, self.dataset.train
        labels = train.targets.get("label", np.zeros(len(train), np.int32))
        return epoch_order(config.seed, epoch, labels, config.batch_size, config.data.balance)

    def evaluator(self, *, flips: bool = False) -> Evaluator:
        """Makes an evaluator of the whole network, see `Evaluator`."""
        return Evaluator(self.network, self.task, self.preprocess, self.config.batch_size, flips=flips)

    def weights(self, arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, Arrays]:
        """Returns the parameters and batch statistics among a checkpoint's arrays, on the devices."""
        params, batch_stats = (
            self.devices.replicate({key: arrays[f"{part}/{key}"] for key in shapes})
            for part, shapes in (("params", self.network.params), ("batch_stats", self.network.batch_stats))
        )
        return params, batch_stats

    def test(
        self,
        params: Arrays,
        batch_stats: Arrays,
        split: Split | None = None,
        after_call: Callable[[int, int], None] = lambda done, steps: None,
    ) -> dict[str, Any]:
        """Returns the figures of weights on the test split under the names of results.json, see `Task.results`.

        Args:
          params: on the devices.
          batch_stats: likewise.
          split: another one in place of the test split.
          after_call: see `Evaluator`.

        With `evaluation.flips` the task's own monitor is there for the flipped images too, as `test_accuracy_flips`.
        """
        loader = Loader(self.dataset.test if split is None else split, self.devices)
        task, figure = self.task, self.task.main().figure
        results = task.results(task.summarize(self.evaluate(params, batch_stats, loader, after_call)))
        if self.config.evaluation.flips:
            flipped = task.summarize(self.evaluator(flips=True)(params, batch_stats, loader))
            results[f"test_{figure}_flips"] = flipped[figure]
        return results
