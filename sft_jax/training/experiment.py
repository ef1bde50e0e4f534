"""What a configuration trains on what: the network, the images on the devices, their evaluation, the phases."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from sft_jax import data, models
from sft_jax.config import flatten
from sft_jax.data.dataset import Split
from sft_jax.data.loader import Feed
from sft_jax.data.sampling import epoch_order
from sft_jax.runtime.devices import AXIS, Devices
from sft_jax.runtime.files import digest
from sft_jax.tasks.class_weights import class_weights
from sft_jax.tasks.classification import summarize, test_results
from sft_jax.training import phases
from sft_jax.training.evaluator import Evaluator
from sft_jax.training.state import Arrays

# The seed's key with this is that of training. New weights have its keys with 0, 1, 2, ..., as nnx.Rngs counts.
TRAINING = 1 << 31


def facts(config: ConfigDict, dataset: data.Dataset) -> dict[str, Any]:
    """What all processes of a run must have in common, to compare; their places on disk need not be the same.

    Raises UserError where the weights of the classes cannot be read.
    """
    settings = {key: value for key, value in flatten(config).items() if key not in {"init", "data.dir"}}
    labels = {
        f"labels of the {name} images": digest({"labels": getattr(dataset, name).labels}, {})[:8]
        for name in ("train", "validation", "test")
    }
    weights = class_weights(config.regularization.class_weights, dataset.train.labels, dataset.class_names)
    return (
        settings
        | labels
        | {"class names": list(dataset.class_names), "class weights": weights, "version of jax": jax.__version__}
    )


class Task:
    """One configuration on its data set and devices. Nothing here changes while it is trained.

    Attributes:
      config, dataset, devices: as given.
      build: the network's constructor, see `models.builder`.
      network: the network as a function.
      phases: of the training, see `phases.phases`.
      steps_per_epoch: full batches of an epoch.
      preprocess: from uint8 images to the network's inputs in evaluation.
      evaluate: of parameters and batch statistics on a feed of images.
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
        self.build = models.builder(
            config.model,
            len(dataset.class_names),
            precision=config.precision,
            axis_name=AXIS,
            stochastic_depth=config.regularization.stochastic_depth,
        )
        self.network = models.Functional.abstract(self.build)
        self.phases = phases.phases(config, list(self.network.params), self.network.batch_stats)
        self.steps_per_epoch = len(self.order(epoch=0))
        self.preprocess = data.make_preprocess(config.data)
        self.evaluate = self.evaluator(self.network)
        self.key = devices.replicate(jax.random.fold_in(jax.random.key(config.seed), TRAINING))

    @functools.cached_property
    def train_feed(self) -> Feed:
        """The training images; they go to the devices when they are first asked for."""
        return Feed(self.dataset.train, self.devices)

    @functools.cached_property
    def validation_feed(self) -> Feed:
        """The validation images, likewise."""
        return Feed(self.dataset.validation, self.devices)

    @functools.cached_property
    def class_weights(self) -> tuple[float, ...] | None:
        """Of the training loss. Raises UserError where their file does not give them."""
        setting = self.config.regularization.class_weights
        return class_weights(setting, self.dataset.train.labels, self.dataset.class_names)

    def order(self, epoch: int) -> np.ndarray:
        """Rows of the training images in the order of an epoch, int32 [steps, batch]."""
        config = self.config
        return epoch_order(config.seed, epoch, self.dataset.train.labels, config.batch_size, config.data.balance)

    def evaluator(self, network: models.Functional, *, flips: bool = False) -> Evaluator:
        """Of a network on images, see `Evaluator`."""
        classes = len(self.dataset.class_names)
        return Evaluator(network, self.preprocess, self.devices, classes, self.config.batch_size, flips=flips)

    def weights(self, arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, Arrays]:
        """The parameters and batch statistics among a checkpoint's arrays, on the devices."""
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
        after_piece: Callable[[int, int], None] = lambda done, steps: None,
    ) -> dict[str, Any]:
        """The figures of weights on the test split, see `report.results.test_results`.

        Args:
          params: on the devices.
          batch_stats: likewise.
          split: another one in place of the test split.
          after_piece: see `Evaluator`.

        With `evaluation.flips` there is `test_accuracy_flips` too.
        """
        feed = Feed(self.dataset.test if split is None else split, self.devices)
        results = test_results(self.evaluate(params, batch_stats, feed, after_piece), self.dataset.class_names)
        if self.config.evaluation.flips:
            flipped = self.evaluator(self.network, flips=True)(params, batch_stats, feed)
            results["test_accuracy_flips"] = summarize(flipped)["accuracy"]
        return results
