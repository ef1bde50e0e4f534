"""Tests that a run resumed on other devices has the same images in the same order, and the same losses."""

import shutil
import signal

import jax
import numpy as np
import pytest
from tiny_runs import TINY, rows_of

from sft_jax import data
from sft_jax.config import complete
from sft_jax.data.loader import StepsPerCall
from sft_jax.errors import StoppedError, UserError
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.run.progress import Progress
from sft_jax.runtime.devices import Devices
from sft_jax.runtime.signals import StopRequest
from sft_jax.training.trainer import Trainer

SETTINGS = TINY | {"optimizer.learning_rate": 3e-5, "limit_train_examples": 192, "data.flip": True}


def continue_run(folder, count, epochs, *, stop=None):
    """Trains on `count` devices until `epochs` are done or `stop` is set."""
    config = complete(SETTINGS | {"epochs": epochs})
    dataset = data.load_dataset(config.data, seed=0, limit_train=192, limit_eval=61)
    devices = Devices(jax.devices()[:count])
    trainer = Trainer(config, dataset, devices, Run(folder), Console(), StopRequest() if stop is None else stop)
    trainer.steps_per_call = StepsPerCall(seconds=0)  # one step per call
    trainer.begin(None, resume=True, command=[])
    trainer.fit()


@pytest.fixture
def losses(monkeypatch):
    """Returns the losses of all steps in order."""
    recorded = []
    add = Progress.add

    def watched(self, losses, correct, seconds):
        recorded.extend(losses.tolist())
        add(self, losses, correct, seconds)

    monkeypatch.setattr(Progress, "add", watched)
    return recorded


@pytest.mark.long
def test_from_eight_devices_to_one_two_four_and_back(tmp_path, losses):
    """Trains each epoch on another number of devices and compares it with the same epoch on eight.

    Both start from the same checkpoint, because in so small a network rounding errors grow tenfold in a few steps.
    """
    folder = tmp_path / "moving"
    continue_run(folder, 8, 1)
    for epochs, count in enumerate((1, 2, 4, 8), start=2):
        twin = shutil.copytree(folder, tmp_path / f"staying {epochs}")
        losses.clear()
        continue_run(folder, count, epochs)
        continue_run(twin, 8, epochs)
        moved, stayed = np.split(np.array(losses), 2)
        assert len(moved) == 3
        np.testing.assert_allclose(moved, stayed, rtol=1e-5)
        row, wanted = (rows_of(place)[-1] for place in (folder, twin))
        np.testing.assert_allclose(row["val_loss"], wanted["val_loss"], rtol=1e-4)
        assert row["step"] == wanted["step"] == 3 * epochs


@pytest.mark.long
def test_devices_may_change_within_an_epoch(tmp_path, losses, monkeypatch):
    """Steps that one device has done are not repeated by two others."""
    stop = StopRequest()
    add = Progress.add

    def stopping(self, losses, correct, seconds):
        add(self, losses, correct, seconds)
        stop.signal = signal.SIGTERM

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "add", stopping)
        with pytest.raises(StoppedError):
            continue_run(tmp_path / "moving", 1, 1, stop=stop)
    done = len(losses)
    assert 0 < done < 3
    continue_run(tmp_path / "moving", 2, 1)
    moving = list(losses)
    losses.clear()
    continue_run(tmp_path / "staying", 8, 1)
    assert len(moving) == 3
    np.testing.assert_allclose(moving, losses, rtol=1e-5)


def test_a_batch_that_does_not_divide_over_the_new_devices_is_refused():
    with pytest.raises(UserError, match="batch_size=64 does not divide evenly over 5 devices; use .*=60 or 65"):
        Devices(jax.devices()[:5]).check_batch(64)


class FakeTpu:
    platform, process_index, id = "tpu", 0, 0


@pytest.mark.parametrize(
    ("shape", "dtype", "size"),
    [
        ((50_000, 3072), "uint8", 50_000 * 3072),
        ((50_000,), "int32", 50_176 * 4),
        ((3, 3, 64, 60), "float32", 9 * 64 * 128 * 4),
        ((20, 100), "bfloat16", 24 * 128 * 2),
    ],
)
def test_a_tpu_stores_tiles(shape, dtype, size):
    """The sizes are those of the arguments of a program compiled for a TPU v5e (jax 0.10.2, libtpu 0.0.42)."""
    arrays = {"array": jax.ShapeDtypeStruct(shape, dtype)}
    devices = Devices(jax.devices()[:1])
    assert devices.stored_bytes(arrays) == np.prod(shape, dtype=int) * np.dtype(arrays["array"].dtype).itemsize
    devices.devices = [FakeTpu()]
    assert devices.stored_bytes(arrays) == size
    assert devices.stored_bytes({"array": jax.ShapeDtypeStruct((8, *shape), dtype)}, sharded=True) == size
