"""What training a configuration would cost on this machine, image size by image size."""

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
from sft_jax.runtime.devices import Devices
from sft_jax.runtime.estimate import compile_step, flops
from sft_jax.training.experiment import Experiment
from sft_jax.training.phase_programs import PhasePrograms
from sft_jax.training.state import Arrays
from sft_jax.training.step import make_train_step

# Steps of one compiled call, as a run has them; the median of so many calls counts.
STEPS, CALLS = 2, 3


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of training at one image size.

    Attributes:
      size: side of the images in pixels.
      gflop: billions of floating-point operations of a training step (see `estimate.flops`).
      memory_bytes: of a step on each device, as XLA's analysis has it; None where it does not tell.
      step_ms, evaluation_ms: of a batch in training and in evaluation, measured; of the phase with most parameters.
      epoch_s: from them, for all training and validation images.
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
    """Compiles and times the programs of a run of `config` at `size` pixels, on random images of those of `dataset`.

    Decoding images from files, where they do not fit into memory, is not counted.
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
    return Cost(size, _flops(experiment, programs) / 1e9, memory_bytes, 1e3 * step_s, 1e3 * evaluation_s, epoch_s)


def _random_images(config: ConfigDict, dataset: Dataset, size: int) -> Dataset:
    """Images for `STEPS` batches, of the size in which those of `dataset` are held."""
    shape: tuple[int, ...] = (size, size, 3)
    # Those of a folder are brought to the size when they are read; others by the compiled step.
    if isinstance(dataset.train, ArraySplit) and not config.data.source.startswith("folder:"):
        shape = dataset.train.images.shape[1:]
    count = STEPS * config.batch_size
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
    split = ArraySplit.of_images(images, np.arange(count, dtype=np.int32) % len(dataset.class_names))
    return Dataset(split, split, split, dataset.class_names)


def _flops(experiment: Experiment, programs: PhasePrograms) -> float:
    """Of one step on all devices together."""
    config = experiment.config
    # On one device and in one part: what is computed is the same.
    build = models.builder(config.model, experiment.task.outputs, precision=config.precision)
    whole = models.Network.abstract(build, experiment.task.inputs)
    network: models.Network | models.HeadNetwork = whole
    image = jax.ShapeDtypeStruct((config.batch_size, config.data.size, config.data.size, 3), np.float32)
    batch = {"image": image, "label": jax.ShapeDtypeStruct((config.batch_size,), np.int32)}
    if programs.phase.on_features:
        network = models.HeadNetwork(whole)
        batch["feature"] = jax.eval_shape(whole.features, whole.params, whole.batch_stats, image)
    settings = dataclasses.replace(programs.settings(), accumulate=1)
    step = make_train_step(network, experiment.task, programs.optimizer, None, settings)
    state = jax.eval_shape(programs.new_state, whole.params, whole.batch_stats)
    return flops(step, state, batch, jax.eval_shape(jax.random.key, 0))


def _seconds(call: Callable[[], None]) -> float:
    """The median of `CALLS` calls after a first one."""
    call()
    found = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found)
