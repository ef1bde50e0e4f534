"""Tests of files like torchvision's published weights: parameters that require gradients, no counters."""

import email.message
import hashlib
import io
import json
import sys
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
import torchvision

from convert import families, keys, reference, resnet_to_flax, sources
from convert.fit import fit
from sft_jax.models import ARCHITECTURES, resnet
from sft_jax.models.weights import load_weights

# Every ResNet of torchvision's, and one network of each other family of torchvision's that is small enough.
ARCHS = [name for name, variant in resnet.VARIANTS.items() if not variant.deep] + ["efficientnet_b0", "convnext_tiny"]


@pytest.fixture(scope="module")
def state_dict():
    return checkpoints.trained(classes=1000)


@pytest.fixture(scope="module", params=["legacy", "zip"])
def contents(state_dict, request):
    """The bytes of a file like resnet18-f37072fd.pth, which dates from 2018 and is not a zip file."""
    buffer = io.BytesIO()
    torch.save(checkpoints.genuine(state_dict), buffer, _use_new_zipfile_serialization=request.param == "zip")
    return buffer.getvalue()


@pytest.fixture
def published(contents, monkeypatch, tmp_path):
    """Makes torchvision serve `contents`, replacing only URL and download; returns the path in its cache."""
    name = f"resnet18-{hashlib.sha256(contents).hexdigest()[:8]}.pth"
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.value
    monkeypatch.setattr(weights, "url", f"https://download.pytorch.org/models/{name}")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(reference, "SIZES", (32,))
    return tmp_path / "home" / "hub" / "checkpoints" / name


def convert(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["resnet_to_flax.py", *map(str, words)])
    resnet_to_flax.main()


def assert_converted(path: Path, state_dict) -> None:
    """Asserts that the converted file has these weights, ImageNet's names and torchvision's preprocessing."""
    weights = load_weights(path)
    for key, array in keys.to_flax(state_dict, families.flax_network("resnet18", 1000)).items():
        np.testing.assert_array_equal(weights.arrays[key], array, strict=True)
    assert weights.class_names is not None
    assert (len(weights.class_names), weights.class_names[0], weights.class_names[-1]) == (
        1000,
        "tench",
        "toilet tissue",
    )
    assert json.loads(weights.metadata["preprocess"]) == {
        "size": 224,
        "resize": 256,
        "interpolation": "bilinear",
        "fit": "crop",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    assert float(weights.metadata["logit_difference"]) < 1e-5


def test_the_imitation_has_the_form_of_the_genuine_file(contents, tmp_path):
    (tmp_path / "w.pth").write_bytes(contents)
    tensors = torch.load(tmp_path / "w.pth", weights_only=True)
    assert len(tensors) == 102
    assert sum(tensor.requires_grad for tensor in tensors.values()) == 62
    assert not any(key.endswith("num_batches_tracked") for key in tensors)


def test_the_command_of_the_readme_downloads_and_converts(published, contents, state_dict, tmp_path, monkeypatch):
    def urlopen(*_):
        response = io.BytesIO(contents)
        response.info = email.message.Message  # type: ignore[attr-defined]
        return response

    monkeypatch.setattr("torch.hub.urlopen", urlopen)
    convert(monkeypatch, "--weights", "IMAGENET1K_V1", "--output", tmp_path / "w.safetensors")
    assert published.read_bytes() == contents
    assert_converted(tmp_path / "w.safetensors", state_dict)


def test_the_command_of_the_readme_uses_torchvisions_cache(published, contents, state_dict, tmp_path, monkeypatch):
    published.parent.mkdir(parents=True)
    published.write_bytes(contents)
    convert(monkeypatch, "--output", tmp_path / "w.safetensors")
    assert_converted(tmp_path / "w.safetensors", state_dict)


def test_a_copy_of_torchvisions_file_is_recognised(published, contents, state_dict, tmp_path, monkeypatch, capsys):
    (tmp_path / "copy.pth").write_bytes(contents)
    convert(monkeypatch, "--state-dict", tmp_path / "copy.pth", "--output", tmp_path / "w.safetensors")
    assert_converted(tmp_path / "w.safetensors", state_dict)
    said = capsys.readouterr().out
    assert f"{tmp_path / 'copy.pth'} is torchvision's IMAGENET1K_V1 of resnet18" in said
    assert "were taken" not in said


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("arch", ARCHS)
def test_genuine_files_of_every_network_are_read(tmp_path, arch, zipped):
    with torch.device("meta"):
        shapes = torchvision.models.get_model(arch, weights=None).state_dict()
    # One number per tensor keeps the files small; otherwise they are like the genuine ones.
    numbers = {key: torch.full((), 1 + index / 1000) for index, key in enumerate(shapes)}
    tensors = {key: numbers[key].expand(tensor.shape) for key, tensor in shapes.items()}
    torch.save(checkpoints.genuine(tensors), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    result = fit(sources.read(tmp_path / "w.pth", arch=arch).state_dict, arch, "w.pth")
    assert (result.classes, result.counters, result.notices) == (1000, {}, [])
    assert result.arrays.keys() == (result.network.params | result.network.batch_stats).keys()
    for key, array in result.arrays.items():
        assert array.min() == array.max() == np.float32(numbers[keys.torch_key(key, ARCHITECTURES[arch])])
