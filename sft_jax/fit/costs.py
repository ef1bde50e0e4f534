"""Measures what a run costs on this machine: the time to read images, and that of the run's own compiled programs."""

import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from sft_jax.config import complete, flatten
from sft_jax.data import Dataset
from sft_jax.data.dataset import ArraySplit, Batch, Split, StreamedSplit
from sft_jax.data.images.reading import Reading
from sft_jax.data.loader import StepsPerCall
from sft_jax.data.sampling import spread
from sft_jax.data.sources.known import source_of
from sft_jax.doctor.largest import Need, largest_batch
from sft_jax.errors import UserError
from sft_jax.runtime.cache import keeps_programs
from sft_jax.runtime.devices import Devices
from sft_jax.runtime.estimate import bytes_needed, compile_step, compiled, size_text
from sft_jax.training.experiment import Experiment
from sft_jax.training.phase_programs import PhasePrograms
from sft_jax.training.start import initial_weights, load_init

# Validation images whose evaluation is timed, in batches, and how often; seconds of training steps that are timed, and
# steps at least.
BATCHES, PASSES, SECONDS, STEPS = 4, 3, 4.0, 3
# Compilations of training compared with those of evaluation, and the time of an image, as long as only the latter was
# measured: about those of EfficientNet-Lite0 on CPUs.
COMPILATION, IMAGE = 5.0, 4.0


class Costs(NamedTuple):
    """Seconds that parts of a run take.

    Attributes:
      size: side in pixels at which the rest was measured.
      start: to prepare weights and the network.
      compile, step: compilation of the training steps, and one step.
      evaluation_compile, image: compilation of a pass over images, and an image in it.
      is_guess: whether training was not measured, but guessed from evaluation.
      kept: epochs of the whole network in the run whose training program is kept in the cache; 0 for none.
    """

    size: int
    start: float
    compile: float
    step: float
    evaluation_compile: float
    image: float
    is_guess: bool = True
    kept: int = 0

    def __str__(self) -> str:
        training = f"{1e3 * self.step:.0f} ms a training step, {self.compile:.1f} s to compile"
        guess = " (guessed)" if self.is_guess else ""
        return f"{self.size} px: {1e3 * self.image:.1f} ms to evaluate an image, {training}{guess}"

    def at(self, size: int) -> "Costs":
        """Returns the costs at another size, in proportion to the pixels."""
        if size == self.size:
            return self
        factor = (size / self.size) ** 2
        return self._replace(size=size, step=factor * self.step, image=factor * self.image, kept=0)


class Meter:
    """Measures configurations on one dataset.

    Args:
      dataset: as read with some configuration.
      devices: the devices.
    """

    def __init__(self, dataset: Dataset, devices: Devices):
        self._dataset, self._devices = dataset, devices

    def evaluation(self, config: ConfigDict) -> Costs:
        """Measures the evaluation of `config`'s network, and guesses the cost of training from it."""
        began = time.perf_counter()
        experiment = self.experiment(config)
        params, batch_stats, _ = initial_weights(experiment, load_init(config))
        params, batch_stats = experiment.devices.replicate((params, batch_stats))
        start = time.perf_counter() - began
        validation = experiment.dataset.validation
        loader = experiment.loader(validation.take(spread(np.arange(len(validation)), BATCHES * config.batch_size)))
        order, mask = experiment.evaluate.order(loader)
        call = next(loader.calls(order, mask, steps_per_call=StepsPerCall()))
        program = experiment.evaluate.program(loader)
        compilation = _seconds(lambda: compile_step(program, params, batch_stats, call.chunk))

        def evaluate() -> None:
            experiment.evaluate(params, batch_stats, loader)

        evaluate()  # the first time, the program is loaded
        # The fastest, because other programs may disturb any.
        image = min(_seconds(evaluate) for _ in range(PASSES)) / len(loader)
        step = IMAGE * config.batch_size * image
        return Costs(config.data.size, start, COMPILATION * compilation, step, compilation, image)

    def training(self, config: ConfigDict, before: Costs) -> tuple[Costs, int]:
        """Measures the training steps of `config`'s last phase, and evaluation if `before` is of another size.

        Returns:
          the costs, and the largest batch size that fits into memory, at most that of `config`.

        Raises:
          UserError: not even a small batch fits.
        """
        steps = self._largest(config)
        evaluation = before
        if before.size != config.data.size:  # otherwise, compilation would be that of a program in the cache
            evaluation = self.evaluation(complete(flatten(config) | {"batch_size": steps.batch}))
        kept = config.epochs - steps.first_epoch if keeps_programs() else 0
        costs = evaluation._replace(compile=steps.compile_s, step=steps.seconds(), is_guess=False, kept=kept)
        return costs, steps.batch

    def _largest(self, config: ConfigDict) -> "Steps":
        """Returns the compiled training steps with the largest batch that fits, at most `config.batch_size`."""
        tried: dict[int, Steps] = {}

        def need(batch: int) -> Need | None:
            tried[batch] = Steps(self.experiment(complete(flatten(config) | {"batch_size": batch})))
            return tried[batch].need

        free, unit = self._devices.free_bytes(), self._devices.count * config.optimizer.accumulate
        found = largest_batch(need, start=config.batch_size, unit=unit, limit=config.batch_size, memory=free)
        if found.batch is None:
            raise UserError(
                f"not even a batch of {found.too_large} images of {config.data.size} px fits into the "
                f"{size_text(free)} of free memory; use a smaller --config.data.size or network"
            )
        return tried[found.batch]

    def experiment(self, config: ConfigDict) -> Experiment:
        """Makes the experiment of a configuration, with images of its size."""
        dataset = self._dataset
        if source_of(config.data).of_files:
            side = Reading.of_config(config.data).square_of(config.data.size).side
            train, validation = (at_side(split, side) for split in (dataset.train, dataset.validation))
            dataset = dataclasses.replace(dataset, train=train, validation=validation)
        return Experiment(config, dataset, self._devices)


class Steps:
    """The training steps of an experiment's last phase, compiled.

    Attributes:
      batch: the batch size.
      first_epoch: the first epoch of the phase, counted from 0.
      compile_s: seconds that compilation took.
      need: the memory that they need; None if the compiler refuses them.
    """

    def __init__(self, experiment: Experiment):
        phase, self.batch = experiment.phases[-1], experiment.config.batch_size
        self._programs, self.first_epoch = PhasePrograms(experiment, phase), phase.first
        self._programs.train_steps = self._programs.compiled()
        params, batch_stats, _ = initial_weights(experiment, load_init(experiment.config))
        self._state = experiment.devices.replicate(self._programs.new_state(params, batch_stats))
        self._order, self.need = experiment.order(0), None
        call = next(self._programs.train_loader.calls(self._order, steps_per_call=StepsPerCall()))
        began = time.perf_counter()
        try:
            program = compiled(self._programs.train_steps, self._state, call.chunk, experiment.key)
        except RuntimeError:  # a device's compiler, where it does not fit
            return
        self.compile_s, needed = time.perf_counter() - began, bytes_needed(program)
        self.need = Need(needed, program.memory_analysis().temp_size_in_bytes) if needed is not None else Need(0, 0)

    def seconds(self) -> float:
        """Runs steps for about `SECONDS`, with images as they come; returns the seconds of one. Can be called once."""
        calls = self._programs.run_steps(self._state, self._order, steps_per_call=StepsPerCall())
        times, done = [time.perf_counter()], [0]
        for state, call, metrics in calls:
            jax.block_until_ready((state, metrics))
            times.append(time.perf_counter())
            done.append(done[-1] + call.steps)
            if done[-1] > STEPS and times[-1] - times[1] > SECONDS:
                break
        # Without the first call, which also loads the program, unless it is the only one.
        first = min(1, len(times) - 2)
        return (times[-1] - times[first]) / (done[-1] - done[first])


def at_side(split: Split, side: int) -> Split:
    """Returns a split with images of another size, for measuring: pixels are repeated or left out."""
    if isinstance(split, ArraySplit):
        if split.images.shape[1] == side:
            return split
        return dataclasses.replace(split, inputs={"image": _sampled(split.images, side)})
    assert isinstance(split, StreamedSplit)
    decode: Callable[[int], Batch] = split.decode
    return dataclasses.replace(split, decode=lambda row: {"image": _sampled(decode(row)["image"][None], side)[0]})


def _sampled(images: np.ndarray, side: int) -> np.ndarray:
    rows = np.arange(side) * images.shape[1] // side
    return images[:, rows][:, :, rows]


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
