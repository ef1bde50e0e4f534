"""ResNet-D against timm's, and timm's files of the ResNets that torchvision has."""

import json

import pytest
import timm
import torch
from checkpoints import body, floats
from reference_checks import CLASSES, assert_same_function, assert_same_gradients, assert_same_shapes, moved, network
from timm.models import resnet as timm_resnet
from timm.models._hub import save_config_for_hf

from convert import fit, keys, resnet, sources
from convert.reference import empty_network
from convert.sidecar import beside
from sft_jax.errors import UserError
from sft_jax.models import ARCHITECTURES
from sft_jax.models.resnet import VARIANTS, BasicBlock, Bottleneck, Variant, architecture

SMALL = {
    "resnet18d": Variant(BasicBlock, (1, 2, 1, 1), deep=True),
    "resnet50d": Variant(Bottleneck, (1, 1, 1, 1), deep=True),
}
TIMM_BLOCKS = {BasicBlock: timm_resnet.BasicBlock, Bottleneck: timm_resnet.Bottleneck}


def torch_network(name):
    variant = SMALL[name]
    deep = {"stem_width": 32, "stem_type": "deep", "avg_down": True}
    block = TIMM_BLOCKS[variant.block]
    return moved(timm_resnet.ResNet(block=block, layers=variant.layers, num_classes=CLASSES, **deep))


# 33 px: odd sizes, where average pooling cuts off windows.
@pytest.mark.parametrize(("name", "size"), [("resnet18d", 33), ("resnet50d", 32)])
def test_every_stage_of_resnet_d_is_timm_s(name, size):
    assert_same_function(torch_network(name), network(architecture(name, SMALL[name])), sizes=(size,))


@pytest.mark.long
def test_gradients_and_statistics_of_resnet_d_are_timm_s():
    assert_same_gradients(torch_network("resnet18d"), architecture("resnet18d", SMALL["resnet18d"]), size=24)


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.deep])
def test_shapes_of_resnet_d_are_timm_s(name):
    assert_same_shapes(name)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_timm_s_names_are_torchvision_s(name):
    with torch.device("meta"):
        theirs = timm.create_model(name).state_dict()
    wanted = empty_network(name, 1000).state_dict()
    assert {key: tensor.shape for key, tensor in theirs.items()} == {key: each.shape for key, each in wanted.items()}


# side, side before the crop, interpolation
PREPROCESSING = {
    "resnet18.a1_in1k": (288, 288, "bicubic"),
    "resnet50.tv2_in1k": (224, 232, "bilinear"),
    "resnet18.fb_swsl_ig1b_ft_in1k": (224, 256, "bilinear"),
    "resnet18.fb_ssl_yfcc100m_ft_in1k": (224, 256, "bilinear"),
    "resnet50.gluon_in1k": (224, 256, "bicubic"),
    "resnet50d.gluon_in1k": (224, 256, "bicubic"),
    "resnet18d.ra2_in1k": (288, 303, "bicubic"),
}


@pytest.mark.parametrize("name", PREPROCESSING)
def test_preprocessing_of_timm_s_files(name, tmp_path):
    arch, _, tag = name.partition(".")
    with torch.device("meta"):
        model = timm.create_model(arch, pretrained_cfg=tag)
    save_config_for_hf(model, tmp_path / "config.json")
    assert json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]["tag"] == tag
    found = beside(tmp_path / "model.safetensors", arch).preprocess
    assert (found["size"], found["resize"], found["interpolation"]) == PREPROCESSING[name]


def expanded(name, change=lambda tensor: tensor):
    """Returns a state_dict of `name` whose tensors take no memory."""
    shapes = empty_network(name, 1000).state_dict()
    return floats({key: torch.ones((), dtype=t.dtype).expand(t.shape) for key, t in shapes.items()}, change)


@pytest.mark.long
@pytest.mark.parametrize(
    ("made", "asked"), [("resnet18d", "resnet18"), ("resnet34", "resnet18d"), ("resnet50d", "resnet18")]
)
def test_a_file_of_another_resnet_is_refused_with_its_name(made, asked, tmp_path):
    torch.save({"state_dict": body(expanded(made))}, tmp_path / "w.pth")
    checkpoint = sources.read(tmp_path / "w.pth", arch=asked)
    with pytest.raises(UserError, match=rf"does not fit {asked}, but fits {made}: add --arch {made}$"):
        fit.fit(checkpoint.state_dict, asked, "w.pth")


def test_a_gray_stem_of_resnet_d_becomes_rgb():
    tensors = expanded("resnet18d") | {resnet.DEEP: torch.ones(32, 1, 3, 3)}
    found = fit.fit(tensors, "resnet18d", "w.pth")
    assert found.arrays["conv1.0.kernel"].shape == (3, 3, 3, 32)
    assert resnet.ResNetReference().input_channels(found.module) == 1
    assert "gray" in found.notices[0]


def test_depth_of_resnet_d():
    found = ARCHITECTURES["resnet50d"]
    assert found.depth("conv1.6.kernel") == (0, 0)
    assert found.depth("layer2.0.downsample.1.kernel") == (2, 0)
    assert keys.torch_key("layer2.0.downsample.1.kernel", found) == "layer2.0.downsample.1.weight"
    assert found.stem_of({}) == "imagenet"
