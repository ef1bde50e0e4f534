"""Tests runs of a vision transformer: training, resuming, fine-tuning at another size, export and conversion back."""

import jax
import numpy as np
import pytest
import torch
from tiny_runs import StopAt, assert_same_run, one_device, run
from tiny_vit import build, moved, register

import sft_jax
from convert import flax_to_onnx, flax_to_resnet, resnet_to_flax
from sft_jax.errors import StoppedError, UserError
from sft_jax.export import export
from sft_jax.run.folder import Run
from sft_jax.training import trainer as train_module

CHANGES = {
    "model__name": "tiny_plain",
    "optimizer__name": "adamw",
    "optimizer__learning_rate": 3e-3,
    "finetune__layerwise_decay": 0.9,
    "regularization__stochastic_depth": 0.1,
    "regularization__mixup": 0.2,
}


@pytest.fixture(autouse=True, scope="module")
def known():
    # optax mixes dtypes in its bias correction
    with jax.numpy_dtype_promotion("standard"), pytest.MonkeyPatch.context() as patch:
        register(patch)
        patch.setattr(train_module, "Devices", one_device)
        yield


@pytest.fixture(scope="module")
def converted(known, tmp_path_factory):
    """A converted file, for images of 24 px."""
    folder = tmp_path_factory.mktemp("vit")
    torch.save(moved(build("plain", num_classes=7, img_size=24)).state_dict(), folder / "a.pth")
    resnet_to_flax.convert("tiny_plain", folder / "a.pth", "", folder / "a.safetensors")
    return folder / "a.safetensors"


@pytest.fixture(scope="module")
def trained(known, tmp_path_factory):
    """A run of 12 epochs from random weights: 3 at 8 px, then 9 at 16 px."""
    folder = tmp_path_factory.mktemp("vit_runs") / "run"
    changes = {"epochs": 12, "data__size_schedule": ((8, 0.25),), "regularization__mixup": 0.0}
    return folder, run(folder, **{**CHANGES, **changes})


@pytest.mark.long
def test_a_run_learns(trained):
    _, results = trained
    assert results["test_accuracy"] > 0.5
    assert results["test_loss"] < np.log(5)


@pytest.mark.slow
def test_a_stopped_run_resumes_bit_identically(converted, tmp_path, monkeypatch, capsys):
    """From weights for images of another size."""
    changes = {**CHANGES, "init": str(converted)}
    run(tmp_path / "whole", **changes)
    assert "resampled from 6x6 patches (24 px) to 4x4 (16 px)" in " ".join(capsys.readouterr().out.split())
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "StopRequest", lambda: StopAt(4))
        with pytest.raises(StoppedError):
            run(tmp_path / "stopped", **changes)
    run(tmp_path / "stopped", resume=True, **changes)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.long
def test_a_run_is_fine_tuned_at_another_size(trained, tmp_path):
    folder, _ = trained
    run(tmp_path / "large", init=str(folder), epochs=1, data__size=20, **CHANGES)
    assert Run(tmp_path / "large").checkpoints.restore("best").arrays["params/pos_embed"].shape == (1, 26, 24)
    assert sft_jax.load(tmp_path / "large").logits(np.zeros((20, 20, 3), np.uint8)).shape == (1, 5)


def test_sizes_that_patches_do_not_tile_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"config.data.size=18 is not a multiple of 4 px"):
        run(tmp_path / "a", data__size=18, **CHANGES)
    with pytest.raises(UserError, match=r"config.data.size_schedule=10 is not a multiple of 4 px"):
        run(tmp_path / "b", data__size_schedule=((10, 0.5),), **CHANGES)


@pytest.mark.long
def test_it_is_exported_predicts_and_is_converted_back(trained, tmp_path):
    folder, _ = trained
    difference, _ = export(folder, "best", tmp_path / "vit.stablehlo")
    assert difference < 1e-5
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    classifier = sft_jax.load(folder)
    logits = classifier.logits(images)
    np.testing.assert_allclose(sft_jax.load(tmp_path / "vit.stablehlo").logits(images), logits, atol=1e-4)
    flax_to_resnet.convert(folder, None, tmp_path / "back.pth")
    module = build("plain")
    module.load_state_dict(torch.load(tmp_path / "back.pth"))
    inputs = torch.from_numpy(np.array(classifier.preprocess.on_device(images))).permute(0, 3, 1, 2)
    with torch.no_grad():
        np.testing.assert_allclose(logits, module.eval()(inputs), atol=1e-4)
    flax_to_onnx.convert(folder, None, tmp_path / "vit.onnx")


@pytest.mark.long
def test_a_head_is_trained_on_features(converted, tmp_path):
    results = run(tmp_path / "probe", init=str(converted), finetune__method="head", model__name="tiny_plain")
    assert results["test_loss"] > 0
