"""Swin transformers against torchvision's, and the names of other libraries."""

import dataclasses

import pytest
import timm
import torch
import transformers
from reference_checks import (
    CLASSES,
    assert_same_function,
    assert_same_gradients,
    assert_same_shapes,
    expanded,
    images,
    moved,
    network,
    with_classes,
)
from torchvision.models import swin_transformer as torch_swin

from convert import flax_to_resnet, resnet_to_flax
from convert.fit import fit
from convert.sources import read
from sft_jax.errors import UserError
from sft_jax.models import ARCHITECTURES
from sft_jax.models.architecture import HEAD_DEPTH
from sft_jax.models.swin import VARIANTS, Variant, architecture

SMALL = Variant((2, 1, 1, 1), (1, 2, 4, 8), 8, window=3)
NAME, SECOND = "swin_test", "swin_v2_test"


def torch_network(arch=NAME, outputs=CLASSES):
    shape = {"embed_dim": SMALL.channels, "depths": [*SMALL.blocks], "num_heads": [*SMALL.heads]}
    if arch == SECOND:
        shape |= {"block": torch_swin.SwinTransformerBlockV2, "downsample_layer": torch_swin.PatchMergingV2}
    return torch_swin.SwinTransformer([4, 4], **shape, window_size=[SMALL.window] * 2, num_classes=outputs)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    for name, variant in {NAME: SMALL, SECOND: dataclasses.replace(SMALL, second=True)}.items():
        monkeypatch.setitem(ARCHITECTURES, name, architecture(name, variant))
        monkeypatch.setitem(VARIANTS, name, variant)


@pytest.fixture
def built(monkeypatch):
    monkeypatch.setattr("convert.swin.empty_network", torch_network)


# 70 px: 17 patches, so that maps are padded to whole windows, and an odd one is merged.
@pytest.mark.parametrize("name", [NAME, SECOND])
def test_every_stage_agrees(name):
    assert_same_function(moved(torch_network(name)), network(ARCHITECTURES[name]), sizes=(70,))


@pytest.mark.long
@pytest.mark.parametrize("name", [pytest.param(NAME, marks=pytest.mark.slow), SECOND])
def test_gradients_agree(name):
    assert_same_gradients(moved(torch_network(name)), ARCHITECTURES[name], size=70, tolerance=1e-9)


PUBLISHED = ("swin_t", "swin_s", "swin_b", "swin_v2_t", "swin_v2_s", "swin_v2_b")


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_stage_of_whole_networks_agrees(name):
    size = ARCHITECTURES[name].pretrained.size
    assert_same_function(moved(with_classes(name)), network(ARCHITECTURES[name]), sizes=(size,))


@pytest.mark.long
@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_are_torchvision_s(name):
    assert_same_shapes(name)


@pytest.mark.parametrize("name", [NAME, pytest.param(SECOND, marks=pytest.mark.slow)])
def test_there_and_back_is_bitwise_the_same(name, built, tmp_path, monkeypatch):
    monkeypatch.setattr("convert.sources.published", lambda arch, digest: None)
    monkeypatch.setattr("convert.reference.SIZES", (32,))
    state_dict = moved(torch_network(name)).state_dict()
    torch.save(state_dict, tmp_path / "a.pth")
    resnet_to_flax.convert(name, tmp_path / "a.pth", "", tmp_path / "b.safetensors", dataset="none")
    flax_to_resnet.convert(None, tmp_path / "b.safetensors", tmp_path / "c.pth")
    back = torch.load(tmp_path / "c.pth")
    assert back.keys() == state_dict.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state_dict.items())


def timm_network(name=NAME):
    shape = {"embed_dim": SMALL.channels, "depths": SMALL.blocks, "num_heads": SMALL.heads}
    kind = timm.models.SwinTransformerV2 if name == SECOND else timm.models.SwinTransformer
    return kind(img_size=96, window_size=SMALL.window, num_classes=CLASSES, **shape)


def microsoft(state_dict):
    """Renames timm's tensors to those of Microsoft's files, with their constants."""
    renamed = {}
    for name, tensor in state_dict.items():
        if ".downsample." in name:
            stage = int(name.split(".")[1])
            name = name.replace(f"layers.{stage}.", f"layers.{stage - 1}.")
        renamed[name.replace("head.fc.", "head.")] = tensor
    renamed["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 9, 9)
    index = torch_network().features[1][0].attn.relative_position_index
    return renamed | {"layers.0.blocks.0.attn.relative_position_index": index.reshape(9, 9)}


def hugging_face_network():
    shape = {"embed_dim": SMALL.channels, "depths": [*SMALL.blocks], "num_heads": [*SMALL.heads]}
    config = transformers.SwinConfig(image_size=96, window_size=SMALL.window, num_labels=CLASSES, **shape)
    return transformers.SwinForImageClassification(config)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (NAME, "timm's"),
        (NAME, "Microsoft's"),
        (NAME, "Hugging Face's"),
        (NAME, "Hugging Face's saved"),
        (SECOND, "timm's"),
        (SECOND, "Microsoft's"),
    ],
)
def test_names_of_others(name, kind, built, tmp_path):
    """At a size at which no map is smaller than a window, where they would shrink it."""
    module = moved(hugging_face_network() if kind.startswith("Hugging") else timm_network(name))
    path = tmp_path / "model.safetensors"
    if kind.endswith("saved"):
        module.save_pretrained(tmp_path)
    else:
        path = tmp_path / "w.pth"
        torch.save(microsoft(module.state_dict()) if kind == "Microsoft's" else module.state_dict(), path)
    checkpoint = read(path, arch=name)
    assert f"its keys are {kind.removesuffix(' saved')}; renamed to torchvision's" in checkpoint.notices
    found = fit(checkpoint.state_dict, name, "w.pth")
    assert found.classes == CLASSES
    inputs = torch.from_numpy(images(96)).permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = module(inputs)
        torch.testing.assert_close(found.module(inputs), getattr(wanted, "logits", wanted), rtol=1e-4, atol=1e-4)


def test_timm_s_names_are_all_known():
    with torch.device("meta"):
        theirs = timm.create_model("swin_small_patch4_window7_224").state_dict()
    tensors = {key: torch.ones(()).expand(each.shape) for key, each in theirs.items()}
    with pytest.raises(UserError, match=r"is not a ResNet of .*, but fits swin_s: add --arch swin_s$"):
        fit(tensors, "resnet18", "w.pth")


@pytest.mark.long
def test_another_network_and_another_index_are_refused():
    tensors = expanded("swin_s")
    with pytest.raises(UserError, match=r"does not fit swin_t, but fits swin_s: add --arch swin_s$"):
        fit(tensors, "swin_t", "w.pth")
    name = "features.1.0.attn.relative_position_index"
    with pytest.raises(UserError, match=rf"{name} is unknown"):
        fit(tensors | {name: tensors[name].flip(0)}, "swin_s", "w.pth")


def test_depths_order_the_blocks():
    net = network(ARCHITECTURES["swin_t"])
    blocks = [(stage + 1, block) for stage, count in enumerate((2, 2, 6, 2)) for block in range(count)]
    assert sorted({net.architecture.depth(name) for name in net.params}) == [(0, 0), *blocks, HEAD_DEPTH]
    assert net.architecture.depth("layers.1.downsample.norm.scale") == (2, 0)
    assert not net.architecture.decays("layers.0.blocks.0.attn.relative_position_bias_table")
