"""Measures what training a config would cost on this machine, per size of images or length of texts."""

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
from sft_jax.data.dataset import ArraySplit, Lengths
from sft_jax.data.loader import StepsPerCall
from sft_jax.data.sources.known import source_of
from sft_jax.runtime.estimate import compile_step, flops
from sft_jax.training.evaluator import order_of
from sft_jax.training.experiment import Experiment
from sft_jax.training.phase_programs import PhasePrograms
from sft_jax.training.state import Arrays
from sft_jax.training.step import make_train_step

# Steps per compiled call, and calls of which the median is taken.
STEPS, CALLS = 2, 3


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of training at one size.

    Attributes:
      size: side length of the images in pixels, or length of the texts in tokens.
      unit: of `size`: "px" or "tokens".
      gflop: billions of floating-point operations per training step (see `estimate.flops`).
      memory_bytes: memory of a step on each device, from XLA's analysis; None if it does not say.
      step_ms, evaluation_ms: measured time of a training and an evaluation batch, in the last (largest) phase.
      epoch_s: derived from these, for all training and validation images, or for the batches of texts of this length.
    """

    size: int
    unit: str
    gflop: float
    memory_bytes: int | None
    step_ms: float
    evaluation_ms: float
    epoch_s: float


def measure(planned: Experiment, size: int, params: Arrays, batch_stats: Arrays) -> Cost:
    """Compiles and times the programs of an experiment on random images or texts, stored like those of its dataset.

    Excludes the decoding of images that do not fit into memory.

    Args:
      planned: the experiment.
      size: of the images in pixels, or of the texts in tokens.
      params, batch_stats: initial weights.
    """
    config, dataset = planned.config, planned.dataset
    lengths = dataset.train.lengths
    if lengths is None:
        config = complete(flatten(config) | {"data.size": size, "data.size_schedule": ()})
    stored = _random(config, dataset, size) if lengths is None else _cut(dataset, STEPS * config.batch_size, size)
    experiment = Experiment(config, stored, planned.devices)
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
    steps, evaluations = len(dataset.train) // batch, -(-len(dataset.validation) // batch)
    if lengths is not None:
        orders = planned.order(0), order_of(dataset.validation, batch)[0]
        steps, evaluations = (
            int((split.lengths.of_steps(order) == size).sum()) if split.lengths is not None else 0
            for split, order in zip((dataset.train, dataset.validation), orders, strict=True)
        )
    epoch_s = steps * step_s + evaluations * evaluation_s
    gflop, unit = step_flops(experiment, programs) / 1e9, "px" if lengths is None else "tokens"
    return Cost(size, unit, gflop, memory_bytes, 1e3 * step_s, 1e3 * evaluation_s, epoch_s)


def _random(config: ConfigDict, dataset: Dataset, size: int) -> Dataset:
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


def _cut(dataset: Dataset, count: int, length: int) -> Dataset:
    """Returns `count` of the longest texts, cut to `length` tokens."""
    train = dataset.train
    assert isinstance(train, ArraySplit)
    assert train.lengths is not None
    rows = np.resize(np.argsort(-train.lengths.each, kind="stable"), count)
    split = train.take(rows)
    inputs = {name: values[:, :length] for name, values in split.inputs.items()}
    same = Lengths(np.full(count, length, np.int32), (length,))
    split = dataclasses.replace(split, inputs=inputs, lengths=same)
    return dataclasses.replace(dataset, train=split, validation=split, test=split)


def step_flops(experiment: Experiment, programs: PhasePrograms) -> float:
    """Returns the floating-point operations of one step, on all devices together."""
    config = experiment.config
    # On one device and without accumulation, which computes the same.
    outputs, size = experiment.task.outputs, config.data.size
    build = models.builder(config.model, outputs, size=size, precision=config.precision)
    full = models.Network.abstract(build, experiment.task.inputs)
    network: models.Network | models.HeadNetwork = full
    stored = experiment.stored_shapes(config.batch_size)
    for name, target in experiment.dataset.train.targets.items():
        stored[name] = jax.ShapeDtypeStruct((config.batch_size, *target.shape[1:]), target.dtype)
    batch = jax.eval_shape(experiment.task.preprocess(config.data, size), stored)
    if programs.phase.on_features:
        network = models.HeadNetwork(full)
        inputs = [batch[name] for name in full.inputs]
        batch["feature"] = jax.eval_shape(full.features, full.params, full.batch_stats, *inputs)
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
