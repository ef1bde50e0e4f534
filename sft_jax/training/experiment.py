"""An experiment: the network, task, data, evaluation and phases that a configuration specifies."""

import copy
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
from sft_jax.data.sampling import by_length, epoch_order
from sft_jax.errors import UserError
from sft_jax.runtime.devices import AXIS, Devices
from sft_jax.runtime.files import digest
from sft_jax.tasks import Task
from sft_jax.training import phases
from sft_jax.training.evaluator import Evaluator
from sft_jax.training.state import Arrays

# Folded into the seed's key for training. New weights use 0, 1, 2, ..., the counts of nnx.Rngs.
TRAINING = 1 << 31


def fingerprint(config: ConfigDict, dataset: data.Dataset, task: Task) -> dict[str, Any]:
    """Returns what must be equal in all processes of a run; paths on disk may differ."""
    settings = {key: value for key, value in flatten(config).items() if key not in {"init", "data.dir"}}
    targets = {
        f"{target}s of the {name} images": digest({f"{target}s": getattr(dataset, name).targets[target]}, {})[:8]
        for name in ("train", "validation", "test")
        for target in task.targets
    }
    record = dataset.record
    texts = {} if record is None or record.digests is None else {"texts": dict(record.digests)}
    return (
        settings
        | targets
        | texts
        | {"class names": list(dataset.class_names), "task": str(task), "version of jax": jax.__version__}
    )


class Experiment:
    """A configuration with its dataset and devices. It does not change during training.

    Attributes:
      config, dataset, devices: the arguments.
      task: the task to learn.
      monitor: the metric that selects the best epoch.
      build: the network's constructor, see `models.builder`.
      network: the network as a function.
      phases: the training phases, see `phases.phases`.
      steps_per_epoch: full batches per epoch.
      preprocess: maps a batch of the dataset to the network's inputs for evaluation.
      evaluate: evaluates parameters and batch statistics on a loader.
      key: random key of training, replicated.
      scored_on_validation: whether the validation images score the settings, and so must not select any of them.

    Raises:
      UserError: the configuration does not fit the data or the network.
    """

    def __init__(
        self, config: ConfigDict, dataset: data.Dataset, devices: Devices, *, scored_on_validation: bool = False
    ):
        self.config, self.dataset, self.devices = config, dataset, devices
        self.scored_on_validation = scored_on_validation
        if config.evaluation.crops > 1 and config.data.crop_pct == 1:
            raise UserError(
                f"evaluation.crops={config.evaluation.crops} with data.crop_pct=1: each crop would be the whole image; "
                f"use for example --config.data.crop_pct=0.875"
            )
        self.task, self.monitor = tasks.make(config, dataset), tasks.monitor_of(config)
        models.architecture(config.model.name).check_inputs(self.task.inputs, config.task)
        models.check_head(config.model.name, dense=self.task.dense, task=config.task)
        self.build = models.builder(
            config.model,
            self.task.outputs,
            size=config.data.size,
            precision=config.precision,
            axis_name=AXIS,
            stochastic_depth=config.regularization.stochastic_depth,
            dropout=config.regularization.dropout,
            attention_dropout=config.regularization.attention_dropout,
            rematerialise=config.finetune.rematerialise == "blocks",
        )
        self.network = models.Network.abstract(self.build, self.task.inputs)
        self.phases = phases.phases(config, self.network)
        self.steps_per_epoch = len(self.order(epoch=0))
        self.preprocess = self.task.preprocess(config.data, config.data.size)
        self.evaluate = self.evaluator()
        self.key = devices.replicate(jax.random.fold_in(jax.random.key(config.seed), TRAINING))

    def as_learnt(self, learnt: Mapping[str, Any]) -> "Experiment":
        """Returns the experiment with its task as a checkpoint had it, see `Task.with_learnt`."""
        task = self.task.with_learnt(learnt)
        if task == self.task:
            return self
        same = copy.copy(self)
        same.task = task
        same.evaluate = same.evaluator()
        return same

    def loader(self, split: Split) -> Loader:
        """Makes a loader of `split`, placed on the devices as `data.placement` says."""
        return Loader(split, self.devices, self.config.data.placement)

    @functools.cached_property
    def train_loader(self) -> Loader:
        """Loader of the training split, moved to the devices on first use."""
        return self.loader(self.dataset.train)

    @functools.cached_property
    def validation_loader(self) -> Loader:
        """Loader of the validation split, moved to the devices on first use."""
        return self.loader(self.dataset.validation)

    def stored_shapes(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of the inputs of `count` examples before `preprocess`; texts have the greatest length."""
        size = self.config.data.size
        if self.dataset.train.lengths is None:
            return {"image": jax.ShapeDtypeStruct((count, size, size, 3), np.uint8)}
        (example,) = self.dataset.train.batches(np.zeros((1, 1), np.int32))
        longest = self.dataset.train.lengths.buckets[-1]
        return {name: jax.ShapeDtypeStruct((count, longest), example[name].dtype) for name in self.network.inputs}

    def order(self, epoch: int) -> np.ndarray:
        """Returns the indices of an epoch's training examples in order: int32 [steps, batch]."""
        config, train = self.config, self.dataset.train
        labels = train.targets.get("label", np.zeros(len(train), np.int32))
        order = epoch_order(config.seed, epoch, labels, config.batch_size, config.data.balance, config.data.repeats)
        return order if train.lengths is None else by_length(order, train.lengths.each, config.seed, epoch)

    def evaluator(self, *, crops: int = 1, flips: bool = False) -> Evaluator:
        """Makes an `Evaluator` of the whole network, with test-time augmentation, see `Task.views`."""
        data = self.config.data
        views = self.task.views(data, data.size, crops=crops, flips=flips) if crops > 1 or flips else [self.preprocess]
        return Evaluator(self.network, self.task, views, self.config.batch_size)

    def weights(self, arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, Arrays]:
        """Returns the parameters and batch statistics of a checkpoint's arrays, replicated on the devices."""
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
        """Evaluates weights on the test split; returns metrics under the names of results.json, see `Task.results`.

        Args:
          params: parameters, replicated on the devices.
          batch_stats: batch statistics, replicated on the devices.
          split: a split to use instead of the test split.
          after_call: see `Evaluator`.

        With `evaluation.flips` they include the task's main metric with flips, e.g. `test_accuracy_flips`; with
        `evaluation.crops` that with crops, and flips if these are set as well, e.g. `test_accuracy_crops`.
        """
        loader = self.loader(self.dataset.test if split is None else split)
        task, figure = self.task, self.task.main().figure
        results = task.results(task.summarize(self.evaluate(params, batch_stats, loader, after_call)))
        flips, crops = self.config.evaluation.flips, self.config.evaluation.crops
        augmented = {"flips": (1, True)} if flips else {}
        if crops > 1:
            augmented["crops"] = crops, flips
        for name, (count, mirrored) in augmented.items():
            evaluate = self.evaluator(crops=count, flips=mirrored)
            results[f"test_{figure}_{name}"] = task.summarize(evaluate(params, batch_stats, loader))[figure]
        return results
