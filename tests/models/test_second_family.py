"""Tests a new family of networks: conversion, training, freezing, weight decay, export and resuming."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
from tiny_runs import StopAt, assert_same_run, one_device, run
from toy_family import ARCHITECTURE, ConvNetReference, TorchConvNet

import sft_jax
from convert import flax_to_resnet, resnet_to_flax
from convert.families import REFERENCES
from sft_jax import models
from sft_jax.config import complete
from sft_jax.errors import StoppedError, UserError
from sft_jax.export import export
from sft_jax.models import ARCHITECTURES, Network
from sft_jax.models.weights import load_weights
from sft_jax.run.folder import Run
from sft_jax.training import trainer as train_module
from sft_jax.training.optimizer import make_optimizer
from sft_jax.training.phases import multipliers, phases

CHANGES = {"model__name": "convnet", "data__flip": True}


@pytest.fixture(autouse=True, scope="module")
def known():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "convnet", ARCHITECTURE)
        patch.setitem(REFERENCES, "convnet", ConvNetReference())
        yield


@pytest.fixture(scope="module")
def converted(known, tmp_path_factory):
    """A state_dict, and the file that it was converted to."""
    folder = tmp_path_factory.mktemp("toy")
    torch.manual_seed(0)
    state_dict = TorchConvNet(7).state_dict()
    torch.save(state_dict, folder / "toy.pth")
    resnet_to_flax.convert("convnet", folder / "toy.pth", "", folder / "toy.safetensors")
    return state_dict, folder / "toy.safetensors"


@pytest.fixture(scope="module")
def trained(converted, tmp_path_factory):
    """A run from the converted weights with its first layer frozen."""
    folder = tmp_path_factory.mktemp("toy_runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "Devices", one_device)
        changes = {"epochs": 12, "optimizer__learning_rate": 0.3, "finetune__freeze": (r"blocks\.0\..*",)}
        results = run(folder, init=str(converted[1]), **changes, **CHANGES)
    return folder, results


def network(**changes):
    return Network.abstract(models.builder(complete({"model.name": "convnet"}).model, 5, **changes))


def test_a_conversion_is_verified(converted):
    state_dict, path = converted
    weights = load_weights(path)
    assert (weights.arch, weights.outputs) == ("convnet", 7)
    np.testing.assert_array_equal(weights.arrays["blocks.1.gamma"][0, 0], state_dict["gammas.1"][:, 0, 0])
    certificate = json.loads(path.with_name(path.name + ".json").read_text())
    assert certificate["logit_difference"] < 1e-5
    assert [*certificate["sizes"][0]["stages"]] == ["blocks.0", "blocks.1", "blocks.2"]


def test_mismatches_are_listed_under_the_names_of_the_file(converted, tmp_path):
    state_dict = dict(converted[0])
    del state_dict["gammas.0"]
    torch.save(state_dict, tmp_path / "toy.pth")
    with pytest.raises(UserError, match=r"does not fit convnet, nothing was written:\n  gammas\.0 is missing"):
        resnet_to_flax.convert("convnet", tmp_path / "toy.pth", "", tmp_path / "toy.safetensors")


@pytest.mark.long
def test_it_learns_and_frozen_parameters_stay(converted, trained):
    folder, results = trained
    arrays, start = Run(folder).checkpoints.restore("best").arrays, load_weights(converted[1]).arrays
    for name in ("kernel", "bias", "gamma"):
        np.testing.assert_array_equal(arrays[f"params/blocks.0.{name}"], start[f"blocks.0.{name}"])
        assert (arrays[f"params/blocks.1.{name}"] != start[f"blocks.1.{name}"]).any()
    assert results["test_loss"] < np.log(5)


def test_decay_and_unfreezing_follow_the_depth():
    net = network()
    factors = multipliers(complete({"finetune.layerwise_decay": 0.5}).finetune, net)
    names = ("classifier.bias", "blocks.2.gamma", "blocks.1.kernel", "blocks.0.bias")
    assert [factors[name] for name in names] == [1, 0.5, 0.25, 0.125]
    config = complete({"finetune.method": "gradual", "epochs": 4})
    assert [min(phase.trained) for phase in phases(config, net)] == [
        "classifier.bias", "blocks.2.bias", "blocks.1.bias", "blocks.0.bias"
    ]  # fmt: skip


def test_a_name_without_a_depth_is_an_error():
    unknown = dataclasses.replace(ARCHITECTURE, locate=lambda name: None)
    build = models.builder(complete({"model.name": "convnet"}).model, 5)
    net = Network.abstract(dataclasses.replace(build, architecture=unknown))
    with pytest.raises(ValueError, match=r"convnet has no rule for the depth of 'blocks\.0\.bias'"):
        phases(complete({"epochs": 4}), net)


def test_a_stem_that_it_does_not_have_is_refused():
    with pytest.raises(UserError, match="model.stem='cifar': convnet has only imagenet"):
        models.builder(complete({"model.name": "convnet", "model.stem": "cifar"}).model, 5)


def test_weight_decay_and_muon_apply_to_its_kernels():
    net = network()
    params = {name: np.ones(leaf.shape, np.float32) for name, leaf in net.params.items()}
    config = complete({"optimizer.weight_decay": 0.1, "optimizer.momentum": 0.0}).optimizer
    optimizer = make_optimizer(config, lambda step: 1.0, architecture=ARCHITECTURE)
    zero = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    assert {name for name, update in updates.items() if np.asarray(update).any()} == {
        name for name in params if name.endswith(".kernel")
    }
    assert ARCHITECTURE.matrix_axes("blocks.0.kernel", 4) == ((0, 1, 2), (3,))
    assert ARCHITECTURE.matrix_axes("classifier.kernel", 2) is None
    assert ARCHITECTURE.matrix_axes("blocks.0.gamma", 3) is None


@pytest.mark.long
@pytest.mark.parametrize("method", ["head_then_full", "full"])
def test_a_stopped_run_resumes_bit_identically(method, converted, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "Devices", one_device)
    changes = {**CHANGES, "init": str(converted[1]), "finetune__method": method, "regularization__l2_sp": 0.1}
    changes |= {"regularization__mixup": 0.2} if method == "full" else {"finetune__head_epochs": 1}
    run(tmp_path / "whole", **changes)
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "StopRequest", lambda: StopAt(4))
        with pytest.raises(StoppedError):
            run(tmp_path / "stopped", **changes)
    run(tmp_path / "stopped", resume=True, **changes)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.long
def test_it_is_exported_predicts_and_is_converted_back(trained, tmp_path):
    folder, _ = trained
    difference, _ = export(folder, "best", tmp_path / "toy.stablehlo")
    assert difference < 1e-5
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    logits = sft_jax.load(folder).logits(images)
    np.testing.assert_allclose(sft_jax.load(tmp_path / "toy.stablehlo").logits(images), logits, atol=1e-5)
    flax_to_resnet.convert(folder, None, tmp_path / "back.pth")
    module = TorchConvNet(5)
    module.load_state_dict(torch.load(tmp_path / "back.pth"))
    inputs = sft_jax.load(folder).preprocess.on_device(images)
    with torch.no_grad():
        theirs = module.eval()(torch.from_numpy(np.array(inputs)).permute(0, 3, 1, 2))
    np.testing.assert_allclose(logits, theirs, atol=1e-5)
