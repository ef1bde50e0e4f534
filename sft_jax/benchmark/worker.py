"""Protocol and settings of the benchmark's worker processes: each line on stdin is answered with a line of JSON."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sft_jax.models import architecture

CLASSES = 10
# As in configs/cifar10.py.
LEARNING_RATE, MOMENTUM, CROP_PADDING = 1e-3, 0.9, 4
EPOCH_TRAIN, EPOCH_VALIDATION = 45_000, 5_000


def steps_per_call(platform: str) -> int:
    """Returns the number of steps that are timed together.

    A run of ours compiles as many into one call as take a second. On an accelerator PyTorch, too, waits for the device
    only after that many.
    """
    return 4 if platform == "cpu" else 32


def recipe(arch: str, batch: int, size: int, precision: str) -> dict[str, Any]:
    """Returns the settings of our side, by the keys of a configuration; of texts `size` is their length in tokens."""
    known = architecture(arch)
    if known.texts is not None:
        own: dict[str, Any] = {"task": "text", "text.length": size}
    elif known.dense:
        own = {"task": "segmentation", "data.size": size}
    else:
        own = {"data.size": size, "data.crop_padding": CROP_PADDING}
    return own | {
        "init": "scratch",
        "model.name": arch,
        "batch_size": batch,
        "precision": precision,
        "optimizer.learning_rate": LEARNING_RATE,
        "optimizer.momentum": MOMENTUM,
    }


def images(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the uint8 images [count, size, size, 3] and int32 labels that all workers share."""
    random = np.random.default_rng(0)
    return (
        random.integers(0, 256, (count, size, size, 3), np.uint8),
        random.integers(0, CLASSES, count).astype(np.int32),
    )


def masks(count: int, size: int) -> np.ndarray:
    """Returns masks uint8 [count, size, size] of `images`, in which every pixel has a class."""
    return np.random.default_rng(1).integers(0, CLASSES, (count, size, size), np.uint8)


def texts(arch: str, count: int, length: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns tokens int32 and segments uint8 [count, length], without padding, and labels that all workers share."""
    known = architecture(arch).texts
    assert known is not None
    random = np.random.default_rng(0)
    inputs = {"tokens": known.drawn(random, (count, length)), "segments": np.zeros((count, length), np.uint8)}
    return inputs, random.integers(0, CLASSES, count).astype(np.int32)


def milliseconds(call: Callable[[], None], repeats: int, steps: int = 1) -> list[float]:
    """Times `repeats` calls; returns milliseconds per step, given the number of steps in a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3 / steps)
    return times


def serve(facts: Mapping[str, Any], tasks: Mapping[str, Callable[[int], list[float]]]) -> None:
    """Prints `facts`, then answers each line "TASK REPEATS" with the list of milliseconds that the task returns."""
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        name, repeats = line.split()
        print(json.dumps(tasks[name](int(repeats))), flush=True)
