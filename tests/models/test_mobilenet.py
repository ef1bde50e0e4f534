"""MobileNets against torchvision's and timm's: activations, gradients, statistics, names in files."""

import functools

import jax
import pytest
import torch
from reference_checks import (
    CLASSES,
    assert_same_function,
    assert_same_gradients,
    assert_same_shapes,
    expanded,
    moved,
    network,
    with_classes,
)
from timm.models import _efficientnet_blocks as timm_blocks
from timm.models import _efficientnet_builder as timm_builder
from timm.models import mobilenetv3 as timm_mobilenet
from torchvision.models import mobilenetv3 as torch_mobilenet

from convert.fit import fit
from convert.sources import read
from sft_jax.errors import UserError
from sft_jax.models import ARCHITECTURES
from sft_jax.models.architecture import HEAD_DEPTH
from sft_jax.models.inverted_residual import Style
from sft_jax.models.mobile import Row
from sft_jax.models.mobilenet import VARIANTS, Variant, architecture

# Every kind of block, with and without shortcut, stride, and squeeze-and-excitation.
V3 = (
    (Row("separable", 3, 1, 8, 8, squeeze=False, activation=jax.nn.relu),),
    (Row("inverted", 3, 2, 24, 16, activation=jax.nn.relu), Row("inverted", 5, 1, 40, 16)),
    (Row("conv", 1, 1, 96, 96, shortcut=False),),
)
V4 = (
    (Row("conv", 3, 2, 8, 8, shortcut=False), Row("conv", 1, 1, 8, 8, shortcut=False)),
    (Row("universal", 5, 2, 16, 16, start=3), Row("universal", 0, 1, 32, 16, start=5), Row("edge", 3, 1, 64, 16)),
    (Row("universal", 3, 1, 32, 24), Row("universal", 0, 1, 48, 24)),
)
SMALL = {
    "mobilenet_v3_small": Variant(8, V3, 32, "linear", VARIANTS["mobilenet_v3_small"].style),
    "tf_mobilenetv3_small_100": Variant(8, V3, 32, "convolution", VARIANTS["tf_mobilenetv3_small_100"].style),
    "mobilenetv4_conv_small": Variant(8, V4, 32, "normed", VARIANTS["mobilenetv4_conv_small"].style),
}
# The same blocks in timm's language.
TIMM_V3 = [
    ["ds_r1_k3_s1_e1_c8_nre"],
    ["ir_r1_k3_s2_e3_c16_se0.25_nre", "ir_r1_k5_s1_e2.5_c16_se0.25"],
    ["cn_r1_k1_s1_c96"],
]
TIMM_V4 = [
    ["cn_r1_k3_s2_e1_c8", "cn_r1_k1_s1_e1_c8"],
    ["uir_r1_a3_k5_s2_e2_c16", "uir_r1_a5_k0_s1_e2_c16", "er_r1_k3_s1_e4_c16"],
    ["uir_r1_a0_k3_s1_e2_c24", "uir_r1_a0_k0_s1_e2_c24"],
]


def torch_network(name):
    variant = SMALL[name]
    if variant.last == "linear":
        config = functools.partial(torch_mobilenet.InvertedResidualConfig, dilation=1, width_mult=1.0)
        rows = [
            config(8, 3, 8, 8, False, "RE", 1),
            config(8, 3, 24, 16, True, "RE", 2),
            config(16, 5, 40, 16, True, "HS", 1),
        ]
        return moved(torch_mobilenet.MobileNetV3(rows, 32, num_classes=CLASSES))
    style: Style = variant.style
    normed = variant.last == "normed"
    squeeze = functools.partial(
        timm_blocks.SqueezeExcite,
        gate_layer="hard_sigmoid",
        force_act_layer=torch.nn.ReLU,
        rd_round_fn=timm_builder.round_channels,
    )
    module = timm_mobilenet.MobileNetV3(
        timm_builder.decode_arch_def(TIMM_V4 if normed else TIMM_V3),
        num_classes=CLASSES,
        num_features=32,
        stem_size=8,
        head_bias=not normed,
        head_norm=normed,
        pad_type="same" if style.same_padding else "",
        act_layer=torch.nn.ReLU if normed else torch.nn.Hardswish,
        norm_layer=functools.partial(torch.nn.BatchNorm2d, eps=style.epsilon),
        se_layer=squeeze,
    )
    return moved(module)


@pytest.fixture
def known(monkeypatch):
    """torchvision's blocks are numbered through; which stage they belong to is known for networks in `VARIANTS`."""
    monkeypatch.setitem(VARIANTS, "small", SMALL["mobilenet_v3_small"])


@pytest.mark.parametrize("name", SMALL)
def test_every_stage_agrees(name, known):
    assert_same_function(torch_network(name), network(architecture(name, SMALL[name])), sizes=(37,))


# torch's hard-sigmoid multiplies by 1/6 as a float32 number, in float64 too.
@pytest.mark.long
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mobilenetv4_conv_small"])
def test_gradients_and_statistics_agree(name):
    module = torch_network(name)
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = 0.1  # which in torchvision's is 0.01
    assert_same_gradients(module, architecture(name, SMALL[name]), size=32)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_stage_of_whole_networks_agrees(name):
    assert_same_function(moved(with_classes(name)), network(ARCHITECTURES[name]), sizes=(32, 65))


@pytest.mark.long
@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_are_the_reference_s(name):
    assert_same_shapes(name)


@pytest.mark.long
@pytest.mark.parametrize(
    ("made", "asked", "fits"),
    [
        ("mobilenetv3_small_100", "mobilenet_v3_small", "mobilenetv3_small_100 and tf_mobilenetv3_small_100"),
        ("mobilenet_v3_large", "mobilenetv3_large_100", "mobilenet_v3_large"),
        ("mobilenetv3_small_100", "mobilenetv3_large_100", "mobilenetv3_small_100 and tf_mobilenetv3_small_100"),
        ("mobilenetv4_conv_medium", "resnet18", "mobilenetv4_conv_medium"),
    ],
)
def test_a_file_of_another_network_is_refused_with_its_name(made, asked, fits, tmp_path):
    torch.save(expanded(made), tmp_path / "w.pth")
    content = read(tmp_path / "w.pth", arch=asked).state_dict
    flags = fits.replace(" and ", " or ")
    with pytest.raises(UserError, match=rf"but fits {fits}: add --arch {flags}$"):
        fit(content, asked, "w.pth")


def test_depths_order_the_stages():
    net = network(architecture("mobilenetv4_conv_small", SMALL["mobilenetv4_conv_small"]))
    depths = {net.architecture.depth(name) for name in net.params}
    assert sorted(depths) == [*[(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (4, 0), HEAD_DEPTH]]
    assert net.architecture.depth("norm_head.scale") == (4, 0)
    found = ARCHITECTURES["mobilenet_v3_large"]
    assert (found.channels, found.strides, found.width) == ((16, 24, 40, 112, 960), (2, 4, 8, 16, 32), 1280)
