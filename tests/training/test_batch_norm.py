"""Tests the refusal of batches that are too small for batch norm."""

import jax
import numpy as np
import pytest
import torch
import torchvision
from tiny_runs import TINY, one_device, run

from sft_jax.config import complete
from sft_jax.data import Dataset
from sft_jax.data.dataset import ArraySplit
from sft_jax.errors import UserError
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.runtime.devices import Devices
from sft_jax.training import lr_find
from sft_jax.training import trainer as train_module
from sft_jax.training.batch_norm import check_values
from sft_jax.training.experiment import Experiment
from sft_jax.training.lr_find import find_learning_rate


@pytest.fixture(scope="module")
def noise():
    """A dataset of 4 images in 2 classes."""
    split = ArraySplit.of_images(np.zeros((4, 16, 16, 3), np.uint8), np.arange(4, dtype=np.int32) % 2)
    return Dataset(split, split, split, ("a", "b"))


def refusal(dataset, devices=1, **changes):
    """Returns the error message, None if there is no error."""
    values = {"epochs": 4} | {key.replace("__", "."): value for key, value in changes.items()}
    try:
        check_values(Experiment(complete(values), dataset, Devices(jax.devices()[:devices])))
    except UserError as error:
        return str(error)
    return None


def torch_refuses(name, batch, size):
    try:
        torchvision.models.get_model(name).train()(torch.zeros(batch, 3, size, size))
    except ValueError as error:
        return "Expected more than 1 value per channel" in str(error)
    return False


@pytest.mark.long
@pytest.mark.parametrize(("batch", "size"), [(1, 16), (1, 32), (1, 33), (2, 32)])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_one_value_per_channel_is_refused_where_torch_refuses_it(noise, name, batch, size):
    message = refusal(noise, batch_size=batch, data__size=size, model__name=name)
    assert (message is not None) == torch_refuses(name, batch, size) == (batch == 1 and size <= 32)


def test_the_smallest_batch_that_works_is_named(noise):
    assert refusal(noise, batch_size=1) == (
        "batch_size=1 leaves batch norm one value per channel at 32 px, which it normalises to 0; use "
        "--config.batch_size=2 or more, or --config.finetune.batch_norm=freeze_statistics"
    )
    assert "batch_size=4 in 4 micro-batches (optimizer.accumulate) leaves" in refusal(
        noise, batch_size=4, optimizer__accumulate=4
    )
    for batch, parts in ((2, 1), (4, 2)):
        assert refusal(noise, batch_size=batch, optimizer__accumulate=parts) is None
    assert refusal(noise, devices=2, batch_size=2) is None, "statistics are computed over all devices"


@pytest.mark.long
def test_the_smallest_size_of_a_schedule_counts(noise):
    schedule = (("32", 0.5),)
    assert "at 32 px" in refusal(noise, batch_size=1, data__size=64, data__size_schedule=schedule)
    assert refusal(noise, batch_size=1, data__size=64) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"finetune__batch_norm": "freeze_statistics"},
        {"finetune__batch_norm": "freeze"},
        {"finetune__method": "head"},
    ],
    ids=str,
)
def test_one_image_is_enough_without_batch_statistics(noise, changes):
    assert refusal(noise, batch_size=1, **changes) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"finetune__batch_norm": "recalibrate"},
        {"finetune__method": "gradual"},
        {"finetune__method": "head_then_full", "finetune__head_epochs": 1},
    ],
    ids=str,
)
def test_one_image_is_refused_if_batch_statistics_are_used_earlier_or_later(noise, changes):
    assert refusal(noise, batch_size=1, **changes)


def test_a_refused_batch_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "Devices", one_device)
    monkeypatch.setattr(lr_find, "Devices", one_device)
    with pytest.raises(UserError, match=r"use --config\.batch_size=128 or more"):
        run(tmp_path / "run", optimizer__accumulate=64, data__size=8)
    with pytest.raises(UserError, match=r"use --config\.batch_size=2 or more"):
        find_learning_rate(complete(TINY | {"batch_size": 1, "data.size": 8}), Run(tmp_path / "run"), Console())
    assert not (tmp_path / "run").exists()
