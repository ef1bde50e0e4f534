"""Compiles a recipe's own programs for devices that are not in this machine, and reports what the compiler says.

It is run by `runtime.ahead.ask`, as `python -m sft_jax.doctor.ahead REQUEST`.
"""

import time
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from sft_jax.config import complete, flatten, load_config
from sft_jax.data import Dataset
from sft_jax.data.dataset import ArraySplit
from sft_jax.data.loader import Loader, StepsPerCall
from sft_jax.doctor.assumed import dataset_shapes
from sft_jax.doctor.costs import step_flops
from sft_jax.doctor.figures import Programs, figures, text_lines
from sft_jax.doctor.largest import Need, largest_batch
from sft_jax.errors import UserError, reason
from sft_jax.run.console import Console
from sft_jax.runtime.absent import absent_devices
from sft_jax.runtime.ahead import Tell, answer
from sft_jax.runtime.devices import AbsentDevices
from sft_jax.runtime.estimate import bytes_needed, compiled
from sft_jax.training.experiment import Experiment
from sft_jax.training.phase_programs import PhasePrograms

# Images on each device in the largest batch that is tried; larger ones are of no use.
LIMIT = 4096


class Request(NamedTuple):
    """What is asked of the process: a target, a recipe with its overrides, and batch sizes besides the recipe's."""

    target: str
    config: str
    overrides: list[tuple[str, str]]
    batches: list[int]


class Compiler:
    """Compiles the programs of a configuration's last phase, which trains most and at the largest size.

    Attributes:
      config, dataset, devices: of the experiment; `dataset` has shapes only.
    """

    def __init__(self, config: ConfigDict, dataset: Dataset, devices: AbsentDevices):
        self.config, self.dataset, self.devices = config, dataset, devices

    def programs(self, batch_size: int) -> tuple[Experiment, PhasePrograms]:
        """Returns the experiment and the programs of its last phase with this batch size, not yet compiled."""
        config = complete(flatten(self.config) | {"batch_size": batch_size})
        experiment = Experiment(config, self.dataset, self.devices)
        programs = PhasePrograms(experiment, experiment.phases[-1])
        if programs.phase.on_features:
            programs.use_features(*_feature_loaders(experiment))
        programs.train_steps = programs.compiled()
        return experiment, programs

    def train(self, batch_size: int) -> tuple[Any, int]:
        """Compiles the training program; returns it, and the bytes of other arrays on a device while it runs.

        Raises:
          RuntimeError: the compiler refuses it, for instance because it does not fit into the device's memory.
        """
        experiment, programs = self.programs(batch_size)
        state = jax.eval_shape(programs.new_state, experiment.network.params, experiment.network.batch_stats)
        call = next(programs.train_loader.calls(experiment.order(0), steps_per_call=StepsPerCall()))
        *_, chunk = programs.train_loader.variants(call.chunk)  # texts of the greatest length
        kept = programs.validation_loader.resident_bytes
        if programs.train_loader.placement == "streamed":  # the next chunk arrives during the call
            kept += self.devices.stored_bytes(call.chunk.data, sharded=True)
        return compiled(programs.train_steps, state, chunk, experiment.key), kept

    def evaluate(self, batch_size: int) -> tuple[Any, int]:
        """Compiles the evaluation of the whole network on the test split; returns the same, raises the same."""
        experiment, programs = self.programs(batch_size)
        network, evaluator = experiment.network, experiment.evaluate
        loader = experiment.loader(self.dataset.test)
        order, mask = evaluator.order(loader)
        call = next(loader.calls(order, mask, steps_per_call=StepsPerCall()))
        *_, chunk = loader.variants(call.chunk)
        state = jax.eval_shape(programs.new_state, network.params, network.batch_stats)
        kept = experiment.train_loader.resident_bytes + experiment.validation_loader.resident_bytes
        kept += self.devices.stored_bytes((state.opt_state, state.ema, state.anchor))
        return compiled(evaluator.program(loader), network.params, network.batch_stats, chunk), kept


def _feature_loaders(experiment: Experiment) -> tuple[Loader, Loader]:
    """Returns what `features.feature_loaders` would, with the shapes of the features alone."""
    config, network = experiment.config, experiment.network
    inputs = jax.eval_shape(experiment.preprocess, experiment.stored_shapes(1))
    example = [inputs[name] for name in network.inputs]
    (_, channels) = jax.eval_shape(network.features, network.params, network.batch_stats, *example).shape
    loaders, seen = [], len(experiment.task.views(config.data, config.data.size, crops=1, flips=config.data.flip))
    for split, views in ((experiment.dataset.train, seen), (experiment.dataset.validation, 1)):
        table = np.broadcast_to(np.float32(0), (len(split), views, channels))
        loaders.append(experiment.loader(ArraySplit({"feature": table}, dict(split.targets))))
    return loaders[0], loaders[1]


def examine(config: ConfigDict, name: str, batches: list[int], tell: Tell) -> dict[str, Any]:
    """Compiles `config` for target `name`; returns the figures, see `figures.figures`.

    Raises:
      UserError: the compiler is missing, or training would refuse the configuration.
    """
    devices = absent_devices(name)
    dataset, described = dataset_shapes(config, Console(quiet=True))
    tell(f"target     {name}: {devices}, compiled for without it; jax {jax.__version__}")
    tell(f"data       {described}")
    unit = devices.count * config.optimizer.accumulate
    start = -(-config.batch_size // unit) * unit
    if start != config.batch_size:
        tell(
            f"batch      training refuses batch_size={config.batch_size}, which {unit} does not divide; "
            f"what follows is for --config.batch_size={start}"
        )
    for batch in batches:
        if batch % unit or batch > len(dataset.train):
            raise UserError(
                f"--batches {batch}: it must be a multiple of {unit} (devices, and optimizer.accumulate) and at most "
                f"{len(dataset.train)}, the number of training examples"
            )
    compiler = Compiler(config, dataset, devices)
    refused: dict[int, str] = {}
    found: dict[int, tuple[Any, int]] = {}

    def need(batch: int) -> Need | None:
        if batch not in found and batch not in refused:
            began = time.perf_counter()
            try:
                found[batch] = compiler.train(batch)
                said = f"{(bytes_needed(found[batch][0]) or 0) / 2**20:,.0f} MiB"
            except RuntimeError as error:
                refused[batch] = said = reason(error)
            tell(f"batch      {batch:,}: {said}; compiled in {time.perf_counter() - began:.0f} s")
        if batch in refused:
            return None
        program, others = found[batch]
        return Need((bytes_needed(program) or 0) + others, program.memory_analysis().temp_size_in_bytes)

    needs = {batch: need(batch) for batch in dict.fromkeys([start, *batches])}
    evaluation, why = None, refused.get(start)
    if why is None:
        try:
            evaluation = compiler.evaluate(start)
        except RuntimeError as error:
            why = f"evaluation: {reason(error)}"
    largest = None
    if why is None or "RESOURCE_EXHAUSTED" in why:
        limit = min(len(dataset.train), LIMIT * devices.count)
        largest = largest_batch(need, start=start, unit=unit, limit=limit, memory=devices.free_bytes())
        needs |= largest.tried
    flops = step_flops(*compiler.programs(start)) / devices.count
    programs = Programs(found.get(start), evaluation)
    return figures(name, devices, programs, start, needs, largest, flops, why)


def report_on(request: list[Any], tell: Tell) -> dict[str, Any]:
    """Returns the report on a `Request`, and tells its lines. Raises UserError as `examine` does."""
    asked = Request(*request)
    config = load_config(asked.config, [(key, text) for key, text in asked.overrides])
    report = examine(config, asked.target, asked.batches, tell)
    for line in text_lines(report):
        tell(line)
    return report


if __name__ == "__main__":
    answer(report_on)
