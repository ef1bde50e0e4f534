"""DINOv3's vision transformers against timm's, and files of Hugging Face and facebookresearch."""

import numpy as np
import pytest
import timm
import torch
import transformers
from reference_checks import (
    CLASSES,
    assert_same_function,
    assert_same_gradients,
    assert_same_shapes,
    images,
    moved,
    network,
)
from timm.layers import RotaryEmbeddingDinoV3
from timm.models.eva import Eva

from convert import flax_to_resnet, resnet_to_flax
from convert.dinov3 import DIALECTS
from convert.fit import fit
from convert.names import Naming
from convert.sources import read
from sft_jax import models
from sft_jax.config import complete
from sft_jax.errors import UserError
from sft_jax.models import ARCHITECTURES
from sft_jax.models.architecture import HEAD_DEPTH, Pretrained
from sft_jax.models.dinov3 import VARIANTS, architecture
from sft_jax.models.rotary import rotation
from sft_jax.models.vit import Variant

SETTINGS = {"pool": "patches", "rotary": True, "epsilon": 1e-5}
SMALL = {
    "small_dinov3": Variant(4, 24, 2, 3, 1e-5, 4, biases="", **SETTINGS),
    "small_dinov3_qkvb": Variant(4, 24, 2, 3, 1e-5, 4, biases="qv", **SETTINGS),
}
PLAIN, BIASED = SMALL


def torch_network(arch, outputs=CLASSES):
    return Eva(
        img_size=16,
        patch_size=4,
        embed_dim=24,
        depth=2,
        num_heads=3,
        num_classes=outputs,
        qkv_bias=arch == BIASED,
        init_values=1e-5,
        rope_type="dinov3",
        rope_temperature=100,
        rope_rotate_half=True,
        use_rot_pos_emb=True,
        use_abs_pos_emb=False,
        num_reg_tokens=4,
        use_fc_norm=False,
        dynamic_img_size=True,
        norm_layer=lambda *args, **kwargs: torch.nn.LayerNorm(*args, eps=1e-5, **kwargs),
    )


@pytest.fixture(autouse=True)
def known(monkeypatch):
    for name, variant in SMALL.items():
        monkeypatch.setitem(ARCHITECTURES, name, architecture(name, variant, Pretrained(16, 16)))
        monkeypatch.setitem(VARIANTS, name, variant)
    monkeypatch.setattr("convert.dinov3.empty_network", torch_network)


@pytest.mark.parametrize("name", SMALL)
def test_every_stage_agrees(name):
    assert_same_function(moved(torch_network(name)), network(ARCHITECTURES[name]), sizes=(16, 20))


def test_gradients_agree_in_float64():
    assert_same_gradients(moved(torch_network(BIASED)), ARCHITECTURES[BIASED], size=20, tolerance=1e-9)


def test_angles_are_timm_s():
    theirs = RotaryEmbeddingDinoV3(64, rotate_half=True).get_embed([3, 5])
    ours = rotation(3, 5, 2, 64, np.float32)
    for found, wanted in zip(ours, theirs.chunk(2, -1), strict=True):
        for part in (0, 1):
            np.testing.assert_allclose(found[2:, part, 0], wanted, atol=2e-6)
    assert not ours.sin[:2].any()
    assert not ours.sin[:, 2].any()


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in VARIANTS if "_patch16_" in name])
def test_shapes_are_timm_s(name):
    assert_same_shapes(name)


def test_there_and_back_is_bitwise_the_same(tmp_path, monkeypatch):
    state_dict = moved(torch_network(BIASED)).state_dict()
    torch.save(state_dict, tmp_path / "a.pth")
    resnet_to_flax.convert(BIASED, tmp_path / "a.pth", "", tmp_path / "b.safetensors", dataset="none")
    flax_to_resnet.convert(None, tmp_path / "b.safetensors", tmp_path / "c.pth")
    back = torch.load(tmp_path / "c.pth")
    assert back.keys() == state_dict.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state_dict.items())


def hugging_face(*, biased):
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
    config = transformers.DINOv3ViTConfig(**shape, image_size=16, patch_size=4, num_register_tokens=4)
    module = moved(transformers.DINOv3ViTModel(config))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(("q_proj.bias", "v_proj.bias")) and not biased:
                parameter.zero_()
    return module


@pytest.mark.parametrize("saved", [True, False], ids=["save_pretrained", "state_dict"])
@pytest.mark.parametrize("name", SMALL)
def test_files_of_hugging_face(name, saved, tmp_path):
    module = hugging_face(biased=name == BIASED)
    path = tmp_path / "model.safetensors"
    if saved:
        module.save_pretrained(tmp_path)
    else:
        path = tmp_path / "w.pth"
        torch.save(module.state_dict(), path)
    checkpoint = read(path, arch=name)
    found = fit(checkpoint.state_dict, name, "it")
    assert "its keys are Hugging Face's; renamed to timm's" in checkpoint.notices
    assert "dropped mask_token, which only pretraining uses" in found.notices
    assert ("dropped the biases of its queries and values, which all are 0" in found.notices) == (name == PLAIN)
    inputs = torch.from_numpy(images(20)).permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = module(inputs).last_hidden_state
        # Of the class token; registers come after it there too.
        torch.testing.assert_close(found.module.forward_features(inputs), wanted, rtol=1e-4, atol=1e-4)


def test_files_of_facebookresearch():
    wanted = moved(torch_network(BIASED)).state_dict()
    own = {}
    for name, tensor in wanted.items():
        if name.endswith("q_bias"):
            parts = tensor, torch.ones(24), wanted[name.replace("q_bias", "v_bias")]
            own[name.replace("q_bias", "qkv.bias")] = torch.cat(parts)
            own[name.replace("q_bias", "qkv.bias_mask")] = torch.full((72,), torch.nan)
        elif not name.endswith("v_bias"):
            name = name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
            own[name.replace("reg_token", "storage_tokens")] = tensor
    own |= {"mask_token": torch.zeros(1, 24), "rope_embed.periods": torch.ones(2)}
    naming = Naming(DIALECTS[0], "")
    renamed = {naming.reference_name(name): tensor for name, tensor in own.items()}
    found = fit(renamed, BIASED, "w.pth").module.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
    with pytest.raises(UserError, match=rf"does not fit {PLAIN}, but fits {BIASED}: add --arch {BIASED}$"):
        fit(renamed, PLAIN, "w.pth")


@pytest.mark.long
def test_timm_s_file_is_named():
    with torch.device("meta"):
        theirs = timm.create_model("vit_small_patch16_dinov3", num_classes=0).state_dict()
    tensors = {key: torch.ones(()).expand(each.shape) for key, each in theirs.items()}
    name = "vit_small_patch16_dinov3"
    with pytest.raises(UserError, match=rf"but fits {name}: add --arch {name}$"):
        fit(tensors, "vit_small_patch16_224", "w.pth")


def test_a_size_that_patches_do_not_tile_is_refused():
    config = complete({"model.name": "vit_small_patch16_dinov3"}).model
    with pytest.raises(UserError, match="is not a multiple of 16 px"):
        models.builder(config, CLASSES, size=100)
    assert ARCHITECTURES[PLAIN].for_size({"a": np.zeros(1)}, 32)[1] == ""


def test_depths_and_decay():
    net = network(ARCHITECTURES[BIASED])
    depths = {net.architecture.depth(name) for name in net.params}
    assert sorted(depths) == [(0, 0), (1, 0), (2, 0), HEAD_DEPTH]
    assert not net.architecture.decays("blocks.0.attn.q_bias")
