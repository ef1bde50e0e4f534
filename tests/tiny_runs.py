"""Runs of a few seconds: the network "tiny" on scikit-learn's digits at 16 px, and helpers to inspect them."""

import json
import signal

import jax
import numpy as np
from flax import nnx

from sft_jax.config import complete
from sft_jax.main import observers_of
from sft_jax.models import Network
from sft_jax.models.architecture import Builder
from sft_jax.models.resnet import BasicBlock, Variant, architecture
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.runtime.devices import Devices
from sft_jax.training.observer import nobody
from sft_jax.training.trainer import train

TINY_VARIANT = Variant(BasicBlock, (1, 1, 0, 0))

# Shared by all tests, so that its programs are compiled once.
TINY = {
    "epochs": 2,
    "batch_size": 64,
    "init": "scratch",
    "model.name": "tiny",
    "data.source": "digits:0-4",
    "data.size": 16,
    "data.crop_padding": 2,
    "data.flip": False,
    "optimizer.learning_rate": 0.02,
    "limit_train_examples": 320,
    "limit_eval_examples": 61,
}


def builder(outputs, **settings):
    """Returns the constructor of the network "tiny"."""
    return Builder(architecture("tiny", TINY_VARIANT), outputs, settings)


def network(outputs, **settings):
    """Returns the network "tiny" with random weights."""
    build = builder(outputs, **settings)
    return Network(build(nnx.Rngs(params=0)), build.architecture)


def one_device():
    return Devices(jax.local_devices()[:1])


def run(folder, *, resume=False, observed=False, **changes):
    """Trains "tiny" with `changes` of `TINY`, and if `observed` with the loggers and the report of the command line."""
    config = complete(TINY | {key.replace("__", "."): value for key, value in changes.items()})
    observers = observers_of if observed else nobody
    return train(config, Run(folder), resume=resume, console=Console(), command=["test"], observers=observers)


def state_of(folder):
    return Run(folder).checkpoints.restore("latest")


def rows_of(folder):
    return [json.loads(line) for line in Run(folder).metrics_file.read_text().splitlines()]


def untimed(rows):
    return [{key: row[key] for key in row if key not in ("train_images_per_s", "epoch_s")} for row in rows]


def assert_same_run(folder, other):
    one, two = state_of(folder), state_of(other)
    assert one.step == two.step
    assert one.arrays.keys() == two.arrays.keys()
    for key, array in one.arrays.items():
        np.testing.assert_array_equal(array, two.arrays[key], err_msg=key, strict=True)
    assert untimed(rows_of(folder)) == untimed(rows_of(other))


class StopAt:
    """Replaces `StopRequest`; imitates a SIGTERM that arrives at its `calls`-th query."""

    def __init__(self, calls):
        self._left, self._asked = calls, False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __bool__(self):
        self._left -= 1
        self._asked = self._asked or self._left <= 0
        return self._asked

    @property
    def signal(self):
        # Validation reads the signal without calling bool() first; that counts as a query too.
        return signal.SIGTERM if self._asked or bool(self) else None
