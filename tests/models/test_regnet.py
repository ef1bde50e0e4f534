"""RegNets against torchvision's: activations, gradients, statistics, names in files."""

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
from torchvision.models import regnet as torch_regnet

from convert.fit import fit
from convert.names import namings
from convert.reference import empty_network
from convert.regnet import RegNetReference
from convert.sources import read
from sft_jax.errors import UserError
from sft_jax.models import ARCHITECTURES
from sft_jax.models.architecture import HEAD_DEPTH
from sft_jax.models.regnet import VARIANTS, Variant, architecture

SMALL = Variant((1, 2, 1, 1), (16, 24, 32, 48), 8)


def torch_network(classes=CLASSES):
    strides, ones = [2] * 4, [1.0] * 4
    shape = torch_regnet.BlockParams([*SMALL.blocks], [*SMALL.channels], [SMALL.group] * 4, ones, strides, 0.25)
    return moved(torch_regnet.RegNet(shape, num_classes=classes))


@pytest.fixture
def known(monkeypatch):
    """The small network is called regnet_y_small."""
    name = "regnet_y_small"
    monkeypatch.setitem(ARCHITECTURES, name, architecture(name, SMALL))
    monkeypatch.setitem(VARIANTS, name, SMALL)
    monkeypatch.setattr("convert.regnet.empty_network", lambda arch, outputs: torch_network(outputs))
    return name


def test_every_stage_agrees():
    assert_same_function(torch_network(), network(architecture("small", SMALL)), sizes=(37,))


@pytest.mark.long
def test_gradients_and_statistics_agree():
    assert_same_gradients(torch_network(), architecture("small", SMALL), size=32)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_stage_of_whole_networks_agrees(name):
    if "16gf" in name or "32gf" in name:
        pytest.skip("takes gigabytes; the others have the same code")
    assert_same_function(moved(with_classes(name)), network(ARCHITECTURES[name]), sizes=(64,))


@pytest.mark.long
@pytest.mark.parametrize("name", ["regnet_y_400mf", "regnet_y_800mf", "regnet_y_3_2gf"])
def test_shapes_are_torchvision_s(name):
    assert_same_shapes(name)


# The others, whose tensors take long to make, are compared by the number of parameters that torchvision publishes.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("regnet_y_1_6gf", 11_202_430),
        ("regnet_y_8gf", 39_381_472),
        ("regnet_y_16gf", 83_590_140),
        ("regnet_y_32gf", 145_046_770),
    ],
)
def test_parameters_are_torchvision_s(name, count):
    weights = torch_regnet.__dict__[f"RegNet_{name[7:].upper()}_Weights"].IMAGENET1K_V1
    net = network(ARCHITECTURES[name])
    ours = sum(leaf.size for leaf in net.params.values()) + (1000 - CLASSES) * (net.architecture.width + 1)
    assert ours == count == weights.meta["num_params"]


@pytest.mark.parametrize(("theirs", "name"), [("regnety_004", "regnet_y_400mf"), ("regnety_032", "regnet_y_3_2gf")])
def test_timm_s_names_are_translated(theirs, name):
    with torch.device("meta"):
        names = timm.create_model(theirs).state_dict()
    [naming] = namings(names, RegNetReference().dialects(name))
    assert naming.dialect.title == "timm's"
    shapes = {naming.reference_name(key): tensor.shape for key, tensor in names.items()}
    assert shapes == {key: tensor.shape for key, tensor in empty_network(name, 1000).state_dict().items()}


def test_files_of_hugging_face(known, tmp_path):
    config = transformers.RegNetConfig(
        embedding_size=32,
        hidden_sizes=[*SMALL.channels],
        depths=[*SMALL.blocks],
        groups_width=SMALL.group,
        layer_type="y",
        num_labels=CLASSES,
    )
    module = moved(transformers.RegNetForImageClassification(config))
    torch.save(module.state_dict(), tmp_path / "w.pth")
    checkpoint = read(tmp_path / "w.pth", arch=known)
    assert "its keys are Hugging Face's; renamed to torchvision's" in checkpoint.notices
    found = fit(checkpoint.state_dict, known, "w.pth")
    assert found.classes == CLASSES
    inputs = torch.from_numpy(images(64)).permute(0, 3, 1, 2)
    with torch.no_grad():
        torch.testing.assert_close(found.module(inputs), module(inputs).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(("made", "asked"), [("regnet_y_800mf", "regnet_y_400mf"), ("regnet_y_400mf", "resnet18")])
def test_a_file_of_another_network_is_refused_with_its_name(made, asked, tmp_path):
    torch.save(expanded(made), tmp_path / "w.pth")
    content = read(tmp_path / "w.pth", arch=asked).state_dict
    with pytest.raises(UserError, match=rf"but fits {made}: add --arch {made}$"):
        fit(content, asked, "w.pth")


def test_depths_order_the_blocks():
    net = network(ARCHITECTURES["regnet_y_400mf"])
    blocks = [(stage + 1, block) for stage, count in enumerate((1, 3, 6, 6)) for block in range(count)]
    assert sorted({net.architecture.depth(name) for name in net.params}) == [(0, 0), *blocks, HEAD_DEPTH]
