"""Measures what training a config would cost on this machine, per image size."""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from sft_jax import models
from sft_jax.config import complete, flatten
from sft_jax.data import Dataset
from sft_jax.data.dataset import ArraySplit
from sft_jax.data.loader import StepsPerCall
from sft_jax.data.sources.load import source_of
from sft_jax.runtime.devices import Devices
from sft_jax.runtime.estimate import compile_step, flops
from sft_jax.training.experiment import Experiment
from sft_jax.training.phase_programs import PhasePrograms
from sft_jax.training.state import Arrays
from sft_jax.training.step import make_train_step

# Steps per compiled call, and calls of which the median is taken.
STEPS, CALLS = 2, 3


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of training at one image size.

    Attributes:
      size: side length of the images in pixels.
      gflop: billions of floating-point operations per training step (see `estimate.flops`).
      memory_bytes: memory of a step on each device, from XLA's analysis; None if it does not say.
      step_ms, evaluation_ms: measured time of a training and an evaluation batch, in the last (largest) phase.
      epoch_s: derived from these, for all training and validation images.
    """

    size: int
    gflop: float
    memory_bytes: int | None
    step_ms: float
    evaluation_ms: float
    epoch_s: float


def measure(
    config: ConfigDict, dataset: Dataset, devices: Devices, size: int, params: Arrays, batch_stats: Arrays
) -> Cost:
    """Compiles and times the programs of a run of `config` at `size` pixels, on random images shaped like `dataset`'s.

    Excludes the decoding of images that do not fit into memory.
    """
    values = flatten(config) | {"data.size": size, "data.size_schedule": ()}
    experiment = Experiment(complete(values), _random_images(config, dataset, size), devices)
    programs = PhasePrograms(experiment, experiment.phases[-1])
    state = programs.first_state(params, batch_stats)
    steps_per_call = StepsPerCall()
    steps_per_call.steps = STEPS
    call = next(programs.train_loader.calls(experiment.order(0), steps_per_call=steps_per_call))
    arguments = (call.chunk, experiment.key)
    memory_bytes = compile_step(programs.train_steps, state, *arguments)

    def train() -> None:
        nonlocal state
        state, metrics = programs.train_steps(state, *arguments)
        jax.block_until_ready((state, metrics))

    def evaluate() -> None:
        programs.evaluate(state.params, state.batch_stats, programs.validation_loader)

    step_s, evaluation_s = _seconds(train) / STEPS, _seconds(evaluate) / STEPS
    batch = config.batch_size
    epoch_s = len(dataset.train) // batch * step_s + -(-len(dataset.validation) // batch) * evaluation_s
    return Cost(size, step_flops(experiment, programs) / 1e9, memory_bytes, 1e3 * step_s, 1e3 * evaluation_s, epoch_s)


def _random_images(config: ConfigDict, dataset: Dataset, size: int) -> Dataset:
    """Returns random images for `STEPS` batches, of the size in which `dataset` stores them."""
    shape: tuple[int, ...] = (size, size, 3)
    # Images of a folder are resized when they are read, others in the compiled step.
    if isinstance(dataset.train, ArraySplit) and not source_of(config.data).of_files:
        shape = dataset.train.images.shape[1:]
    count = STEPS * config.batch_size
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
    rows = np.arange(count) % len(dataset.train)
    split = ArraySplit({"image": images}, {name: target[rows] for name, target in dataset.train.targets.items()})
    return Dataset(split, split, split, dataset.class_names)


def step_flops(experiment: Experiment, programs: PhasePrograms) -> float:
    """Returns the floating-point operations of one step, on all devices together."""
    config = experiment.config
    # On one device and without accumulation, which computes the same.
    outputs, size = experiment.task.outputs, config.data.size
    build = models.builder(config.model, outputs, size=size, precision=config.precision)
    full = models.Network.abstract(build, experiment.task.inputs)
    network: models.Network | models.HeadNetwork = full
    stored = {"image": jax.ShapeDtypeStruct((config.batch_size, size, size, 3), np.uint8)}
    for name, target in experiment.dataset.train.targets.items():
        stored[name] = jax.ShapeDtypeStruct((config.batch_size, *target.shape[1:]), target.dtype)
    batch = jax.eval_shape(experiment.task.preprocess(config.data, size), stored)
    if programs.phase.on_features:
        network = models.HeadNetwork(full)
        batch["feature"] = jax.eval_shape(full.features, full.params, full.batch_stats, batch["image"])
    settings = dataclasses.replace(programs.settings(), accumulate=1)
    step = make_train_step(network, experiment.task, programs.optimizer, None, settings)
    state = jax.eval_shape(programs.new_state, full.params, full.batch_stats)
    return flops(step, state, batch, jax.eval_shape(jax.random.key, 0))


def _seconds(call: Callable[[], None]) -> float:
    """Returns the median time of `CALLS` calls after a warm-up."""
    call()
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
