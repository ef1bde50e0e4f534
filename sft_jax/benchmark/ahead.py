"""Compiles the benchmark's training step for a device that is not in this machine, ours and that of stock Flax layers.

It is run by `runtime.ahead.ask`, as `python -m sft_jax.benchmark.ahead REQUEST`.
"""

import time
from typing import Any, NamedTuple

import numpy as np

from sft_jax.benchmark import stock, worker
from sft_jax.config import complete
from sft_jax.data import Dataset
from sft_jax.data.dataset import ArraySplit
from sft_jax.doctor.ahead import Compiler
from sft_jax.doctor.costs import step_flops
from sft_jax.doctor.figures import step_figures
from sft_jax.errors import UserError, reason
from sft_jax.models import architecture
from sft_jax.runtime.absent import absent_devices
from sft_jax.runtime.ahead import Tell, answer
from sft_jax.runtime.chips import TARGETS
from sft_jax.runtime.devices import AbsentDevices
from sft_jax.runtime.estimate import bytes_needed


class Request(NamedTuple):
    """What is asked of the process."""

    target: str
    arch: str
    batch: int
    size: int
    precision: str


def compare(request: list[Any], tell: Tell) -> dict[str, Any]:
    """Returns what --json prints: figures of a step on one device, those of stock Flax with the prefix "stock_".

    Raises:
      UserError: the network or the batch is impossible, or the compiler refuses our program.
    """
    asked = Request(*request)
    devices = absent_devices(asked.target)
    report: dict[str, Any] = asked._asdict() | {"devices": str(devices)}
    tell(f"{asked.target}: {devices}, compiled for without it")
    report |= _figures(asked, devices, "sft-jax", tell)
    if stock.use_stock_layers(asked.arch):
        report |= {f"stock_{name}": value for name, value in _figures(asked, devices, "stock Flax", tell).items()}
    return report


def _figures(asked: Request, devices: AbsentDevices, name: str, tell: Tell) -> dict[str, Any]:
    if architecture(asked.arch).texts is not None:
        raise UserError(
            f"--target compiles networks of images; for {asked.arch} use python -m sft_jax.doctor --config "
            f"configs/sst2.py --config.model.name={asked.arch} --target {asked.target}"
        )
    config = complete(worker.recipe(asked.arch, asked.batch, asked.size, asked.precision))
    devices.check_batch(asked.batch)
    compiler = Compiler(config, _black_images(asked.size), devices)
    began = time.perf_counter()
    try:
        program, _ = compiler.train(asked.batch)
    except RuntimeError as error:
        raise UserError(f"{name} does not compile for {asked.target}: {reason(error)}") from None
    tell(f"{name} compiled in {time.perf_counter() - began:.0f} s")
    flops = step_flops(*compiler.programs(asked.batch)) / devices.count
    memory = {
        "train_bytes": bytes_needed(program),
        "temp_bytes": program.memory_analysis().temp_size_in_bytes,
        "flops": flops,
    }
    step = step_figures(TARGETS[asked.target], program, flops)
    return memory | step | {"precision": asked.precision, "factors": step["precision"]}


def _black_images(size: int) -> Dataset:
    """Returns as many images as CIFAR-10 has, which take no memory here; on the device they take it if they fit."""

    def split(count: int) -> ArraySplit:
        images = np.broadcast_to(np.uint8(0), (count, size, size, 3))
        return ArraySplit.of_images(images, np.arange(count, dtype=np.int32) % worker.CLASSES)

    validation = split(worker.EPOCH_VALIDATION)
    return Dataset(split(worker.EPOCH_TRAIN), validation, validation, tuple(map(str, range(worker.CLASSES))))


if __name__ == "__main__":
    answer(compare)
