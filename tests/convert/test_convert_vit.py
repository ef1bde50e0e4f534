"""Tests of files of vision transformers as torchvision, timm, Hugging Face and facebookresearch write them."""

import json

import numpy as np
import pytest
import torch
import transformers
from tiny_vit import CLASSES, build, moved, register

import sft_jax
from convert import flax_to_onnx, flax_to_resnet, resnet_to_flax
from convert.fit import fit
from convert.sources import read
from sft_jax.errors import UserError
from sft_jax.models.weights import load_weights


@pytest.fixture(autouse=True, scope="module")
def known():
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        yield


def state_dict_of(name, **changes):
    return moved(build(name, **changes)).state_dict()


def read_as(content, name, path):
    """Returns what the converter reads from a file for a tiny network, and its notices."""
    torch.save(content, path)
    checkpoint = read(path, arch=f"tiny_{name}")
    fitted = fit(checkpoint.state_dict, f"tiny_{name}", path.name)
    return fitted, [*checkpoint.notices, *fitted.notices]


def assert_same_network(fitted, wanted):
    """Asserts that both have the same parameters, under torch's names."""
    actual = fitted.module.state_dict()
    assert actual.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(actual[key], tensor, rtol=0, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", ["plain", "registers", "torchvision"])
def test_a_round_trip_is_bit_identical(name, tmp_path):
    state_dict = state_dict_of(name, img_size=24)
    torch.save({"model": state_dict, "epoch": 3}, tmp_path / "a.pth")
    resnet_to_flax.convert(f"tiny_{name}", tmp_path / "a.pth", "", tmp_path / "b.safetensors")
    certificate = json.loads((tmp_path / "b.safetensors.json").read_text())
    assert [entry["size"] for entry in certificate["sizes"]] == [24]  # the size that its positions are for
    assert [*certificate["sizes"][0]["stages"]] == ["embedding", "blocks.0", "blocks.1"]
    assert 0 < certificate["logit_difference"] < 1e-5
    assert certificate["preprocess"]["size"] == certificate["preprocess"]["resize"] == 24
    flax_to_resnet.convert(None, tmp_path / "b.safetensors", tmp_path / "c.pth")
    back = torch.load(tmp_path / "c.pth")
    assert back.keys() == state_dict.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state_dict.items())


def hugging_face(kind):
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 16, "patch_size": 4}
    config = getattr(transformers, f"{kind}Config")(**shape, intermediate_size=96, mlp_ratio=4, num_labels=CLASSES)
    if kind == "ViT":
        return transformers.ViTForImageClassification(config)
    return getattr(transformers, f"{kind}Model")(config)


@pytest.mark.parametrize("saved", [True, False], ids=["save_pretrained", "state_dict"])
@pytest.mark.parametrize(
    ("kind", "name"), [("ViT", "plain"), ("Dinov2", "dinov2"), ("Dinov2WithRegisters", "registers")]
)
def test_files_of_hugging_face_equal_timms(kind, name, saved, tmp_path):
    """The names that `save_pretrained` writes, and those of a state_dict since transformers 5."""
    module = moved(hugging_face(kind))
    path = tmp_path / "model.pth"
    if saved:
        module.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
    else:
        torch.save(module.state_dict(), path)
    checkpoint = read(path, arch=f"tiny_{name}")
    fitted = fit(checkpoint.state_dict, f"tiny_{name}", "it")
    notices = [*checkpoint.notices, *fitted.notices]
    assert "its keys are Hugging Face's; renamed to timm's" in notices
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        output = module(images)
        wanted = output.logits if kind == "ViT" else output.pooler_output
        torch.testing.assert_close(fitted.module(images), wanted, rtol=1e-4, atol=1e-4)
    assert fitted.classes == (CLASSES if kind == "ViT" else 0)
    assert ("dropped mask_token, which only pretraining uses" in notices) == (kind != "ViT")
    class_position = "the position embedding of its class token was added to that token, as timm does"
    assert (class_position in notices) == (name == "registers")


def test_dinov2_of_facebookresearch_is_read(tmp_path):
    """Registers have another name, and the class token has a position."""
    wanted = state_dict_of("registers", num_classes=0)
    own = dict(wanted) | {"register_tokens": wanted["reg_token"], "mask_token": torch.zeros(1, 24)}
    own["pos_embed"] = torch.cat([torch.full((1, 1, 24), 0.5), wanted["pos_embed"]], dim=1)
    own["cls_token"] = wanted["cls_token"] - 0.5
    del own["reg_token"]
    fitted, notices = read_as(
        {"teacher": {f"backbone.{key}": tensor for key, tensor in own.items()}}, "registers", tmp_path / "a.pth"
    )
    tensors = {key: tensor for key, tensor in fitted.module.state_dict().items() if not key.startswith("head.")}
    for key, tensor in wanted.items():
        torch.testing.assert_close(tensors[key], tensor, rtol=0, atol=1e-6, msg=key)
    assert "using the state_dict under 'teacher'" in notices
    assert fitted.classes == 0


def test_mae_gets_a_new_norm_after_the_mean(tmp_path):
    wanted = state_dict_of("plain", num_classes=0)
    fitted, notices = read_as({"model": wanted}, "plain_avg", tmp_path / "a.pth")
    tensors = fitted.module.state_dict()
    assert (tensors["fc_norm.weight"].unique(), tensors["fc_norm.bias"].unique()) == (1, 0)
    assert all(torch.equal(tensors[key], tensor) for key, tensor in wanted.items() if not key.startswith("norm."))
    assert "its last norm was replaced by a new one after the mean, as MAE is fine-tuned" in notices


def test_deit3_of_facebookresearch_is_read(tmp_path):
    wanted = state_dict_of("deit3")
    own = {key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): each for key, each in wanted.items()}
    assert own.keys() != wanted.keys()
    fitted, _ = read_as({"model": own}, "deit3", tmp_path / "a.pth")
    assert_same_network(fitted, wanted)


def test_files_of_torchvision_before_0_14_are_read(tmp_path):
    wanted = state_dict_of("torchvision")
    own = {key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): wanted[key] for key in wanted}
    fitted, _ = read_as(own, "torchvision", tmp_path / "a.pth")
    assert_same_network(fitted, wanted)


@pytest.mark.parametrize(
    ("made", "asked", "message"),
    [
        ("plain_avg", "plain", "does not fit tiny_plain, but fits tiny_plain_avg: add --arch tiny_plain_avg"),
        ("plain", "plain_avg", "does not fit tiny_plain_avg, but fits tiny_plain: add --arch tiny_plain"),
        ("plain", "torchvision", "is not a vision transformer, but fits tiny_plain: add --arch tiny_plain"),
        ("torchvision", "plain", "is not a vision transformer, but fits tiny_torchvision"),
    ],
)  # fmt: skip
def test_the_wrong_network_is_refused_with_the_right_one(made, asked, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_as(state_dict_of(made), asked, tmp_path / "a.pth")


def test_a_size_that_patches_do_not_tile_is_refused(tmp_path):
    torch.save(state_dict_of("plain"), tmp_path / "a.pth")
    with pytest.raises(
        UserError, match="--size=30 is not a multiple of 4 px, the side of the network's patches; use 28 or 32"
    ):
        resnet_to_flax.convert("tiny_plain", tmp_path / "a.pth", "", tmp_path / "b.safetensors", size=30)


@pytest.mark.long
def test_a_file_is_used_at_the_given_size(tmp_path):
    """With `--size 24` for weights of 16 px, predictions and ONNX are at 24 px, and the weights are unchanged."""
    torch.save(state_dict_of("plain"), tmp_path / "a.pth")
    resnet_to_flax.convert("tiny_plain", tmp_path / "a.pth", "", tmp_path / "b.safetensors", size=24)
    assert load_weights(tmp_path / "b.safetensors").arrays["pos_embed"].shape == (1, 17, 24)
    with pytest.warns(UserWarning, match=r"position embeddings resampled from 4x4 patches \(16 px\) to 6x6 \(24 px\)"):
        classifier = sft_jax.load(tmp_path / "b.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), np.uint8)
    inputs = torch.from_numpy(np.array(classifier.preprocess.on_device(images))).permute(0, 3, 1, 2)
    module = build("plain", dynamic_img_size=True)
    module.load_state_dict(torch.load(tmp_path / "a.pth"))
    with torch.no_grad():
        np.testing.assert_allclose(classifier.logits(images), module.eval()(inputs), atol=1e-5)
    flax_to_onnx.convert(None, tmp_path / "b.safetensors", tmp_path / "c.onnx")
