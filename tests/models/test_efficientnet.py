"""Compares EfficientNets with torchvision's and timm's: activations, gradients, statistics, names in files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
import torchvision
from timm.models import _efficientnet_builder as timm_builder
from timm.models import efficientnet as timm_efficientnet
from torchvision.models import efficientnet as torch_efficientnet

from convert import families, keys, parity
from convert.efficientnet import EfficientNetReference
from convert.fit import fit
from convert.names import namings
from sft_jax.errors import UserError
from sft_jax.models import ARCHITECTURES, Network, efficientnet
from sft_jax.models.architecture import HEAD_DEPTH, Builder
from sft_jax.models.efficientnet import VARIANTS, Stage, Variant
from sft_jax.models.inverted_residual import Style, relu6
from sft_jax.tasks.losses import cross_entropy

CLASSES = 5
# Every kind of block, with and without shortcut and stride.
STAGES = (
    Stage("separable", 1, 3, 1, 8, 1),
    Stage("inverted", 6, 5, 2, 16, 2),
    Stage("inverted", 4, 3, 2, 24, 1),
)
FUSED = (Stage("conv", 1, 3, 1, 8, 2), Stage("edge", 4, 3, 2, 16, 2), Stage("inverted", 4, 3, 2, 24, 1))
# name of a network with the same style -> our small variant
SMALL = {
    "efficientnet_b0": Variant(8, STAGES, 32, VARIANTS["efficientnet_b0"].style),
    "efficientnet_v2_s": Variant(8, FUSED, 32, VARIANTS["efficientnet_v2_s"].style),
    "efficientnet_lite0": Variant(8, STAGES, 32, VARIANTS["efficientnet_lite0"].style),
    "tf_efficientnet_lite0": Variant(8, STAGES, 32, VARIANTS["tf_efficientnet_lite0"].style),
    "tf_efficientnetv2_s": Variant(8, FUSED, 32, VARIANTS["tf_efficientnetv2_s"].style),
}
TIMM_KINDS = {"separable": "ds", "inverted": "ir", "edge": "er", "conv": "cn"}


def _torchvisions(variant):
    settings, channels = [], variant.stem
    for stage in variant.stages:
        fused = stage.kind in ("edge", "conv")
        config = torch_efficientnet.FusedMBConvConfig if fused else torch_efficientnet.MBConvConfig
        settings.append(config(stage.expansion, stage.size, stage.stride, channels, stage.channels, stage.blocks))
        channels = stage.channels
    norm = functools.partial(torch.nn.BatchNorm2d, eps=variant.style.epsilon)
    return torch_efficientnet.EfficientNet(
        settings, 0.0, 0.0, num_classes=CLASSES, norm_layer=norm, last_channel=variant.features
    )


def _timms(variant):
    style: Style = variant.style
    rows = [
        [
            f"{TIMM_KINDS[stage.kind]}_r{stage.blocks}_k{stage.size}_s{stage.stride}_e{stage.expansion}_c{stage.channels}"
            + ("_se0.25" if style.squeeze and stage.kind in ("separable", "inverted") else "")
            + ("_skip" if stage.kind == "conv" else "")
        ]
        for stage in variant.stages
    ]
    return timm_efficientnet.EfficientNet(
        timm_builder.decode_arch_def(rows),
        num_classes=CLASSES,
        num_features=variant.features,
        stem_size=variant.stem,
        fix_stem=True,
        pad_type="same" if style.same_padding else "",
        act_layer=torch.nn.ReLU6 if style.activation is relu6 else torch.nn.SiLU,
        norm_layer=functools.partial(torch.nn.BatchNorm2d, eps=style.epsilon),
    )


def torch_network(name, seed=0):
    """Returns the reference's network with batch norm as far from initialisation as after training."""
    torch.manual_seed(seed)
    theirs = ARCHITECTURES[name].reference == "torchvision"
    module = _torchvisions(SMALL[name]) if theirs else _timms(SMALL[name])
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
            torch.nn.init.normal_(norm.bias, std=0.2)
            norm.running_mean.normal_(std=0.2)
            norm.running_var.uniform_(0.5, 1.5)
    return module


def flax_network(name, **settings):
    return Network.abstract(Builder(efficientnet.architecture(name, SMALL[name]), CLASSES, settings))


@pytest.fixture(scope="module")
def references():
    return {name: torch_network(name).eval() for name in SMALL}


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
def test_activations_match_the_reference(name, references):
    module, network = references[name], flax_network(name)
    state_dict = module.state_dict()
    assert not keys.problems(state_dict, network)
    arrays = keys.to_flax(state_dict, network)
    # An odd size, where TensorFlow's padding differs from an even one's.
    for size in (32, 37):
        comparison = parity.compare(module, network, arrays, size)
        assert max(comparison.stages.values()) < 5e-5
        assert comparison.relative < 1e-5
    back = keys.to_torch(arrays, network.architecture, keys.counters_of(state_dict))
    assert back.keys() == state_dict.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state_dict.items())


@pytest.mark.long
@pytest.mark.parametrize("name", ["efficientnet_b0", "tf_efficientnetv2_s", "tf_efficientnet_lite0"])
def test_gradients_and_statistics_match_the_reference(name, references):
    images, labels = np.random.default_rng(0).standard_normal((4, 16, 16, 3)), np.arange(4)
    module = torch_network(name).double().train()
    network = flax_network(name, dtype=jnp.float64)
    with jax.enable_x64(True):
        arrays = keys.to_flax(module.state_dict(), network)
        params, batch_stats = (
            {key: jnp.asarray(arrays[key]) for key in part} for part in (network.params, network.batch_stats)
        )

        def loss(params):
            logits, statistics = network.apply(params, batch_stats, images, train=True)
            return cross_entropy(logits, labels).mean(), statistics

        (value, statistics), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        ours = jax.device_get(gradients | statistics)
    theirs = torch.nn.functional.cross_entropy(
        module(torch.from_numpy(images).permute(0, 3, 1, 2)), torch.from_numpy(labels)
    )
    theirs.backward()
    assert abs(float(value) - theirs.item()) < 1e-9
    wanted = dict(module.state_dict()) | {key: value.grad for key, value in module.named_parameters()}
    for key, tensor in keys.to_torch(ours, network.architecture).items():
        if key in wanted and not key.endswith(keys.COUNTER):
            scale = wanted[key].abs().max().clip(1e-3)
            assert (tensor - wanted[key]).abs().max() / scale < 1e-7, key


def test_relu6_has_torchs_gradient():
    x = np.float32([-1, 0, 1, 6, 7])
    theirs = torch.tensor(x, requires_grad=True)
    torch.nn.functional.relu6(theirs).sum().backward()
    np.testing.assert_array_equal(jax.grad(lambda x: relu6(x).sum())(x), theirs.grad)


def _reference_names(name):
    with torch.device("meta"):
        if ARCHITECTURES[name].reference == "torchvision":
            return torchvision.models.get_model(name, weights=None).state_dict()
        return timm.create_model(name).state_dict()


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["efficientnet_b3", "efficientnet_v2_m", "efficientnet_lite2", "tf_efficientnet_b4", "tf_efficientnetv2_s"]
)
def test_published_networks_have_the_shapes_of_the_reference(name):
    network = Network.abstract(Builder(ARCHITECTURES[name], 1000))
    ours = {keys.torch_key(key, network.architecture): leaf for key, leaf in network.params.items()}
    theirs = {key: tensor for key, tensor in _reference_names(name).items() if key in ours}
    assert len(theirs) == len(ours)
    assert (
        not {key for key in _reference_names(name) if "running" not in key and "num_batches" not in key} - ours.keys()
    )
    for key, leaf in network.params.items():
        their_key = keys.torch_key(key, network.architecture)
        axes = keys.axes_of(key, len(leaf.shape), network.architecture)
        assert tuple(theirs[their_key].shape[axis] for axis in axes) == leaf.shape, key


def test_names_of_timm_are_translated_to_torchvisions():
    for name, timms in (("efficientnet_b1", "efficientnet_b1"), ("efficientnet_v2_s", "tf_efficientnetv2_s")):
        with torch.device("meta"):
            names = timm.create_model(timms).state_dict()
        [naming] = namings(names, EfficientNetReference().dialects(name))
        assert naming.dialect.title == "timm's"
        assert {naming.reference_name(key) for key in names} == set(_reference_names(name))


def _lukemelas(names):
    """Returns timm's names of EfficientNet-Lite0 as EfficientNet-PyTorch has them, by timm's name."""
    flat, result = -1, {}
    for name in names:
        path, _, leaf = name.rpartition(".")
        first, *block = path.split(".")
        if block:
            flat = sum(stage.blocks for stage in VARIANTS["tf_efficientnet_lite0"].stages[: int(block[0])])
            flat += int(block[1])
            own = {"conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv"}
            if block[0] == "0":
                own |= {"conv_pw": "_project_conv", "bn1": "_bn1", "bn2": "_bn2"}
            else:
                own |= {"conv_pw": "_expand_conv", "bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"}
            result[name] = f"_blocks.{flat}.{own[block[2]]}.{leaf}"
        else:
            ends = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
            result[name] = f"{ends.get(first, '_fc')}.{leaf}"
    return result


def test_names_of_efficientnet_pytorch_are_read_only_for_networks_of_tensorflow():
    names = _lukemelas(_reference_names("tf_efficientnet_lite0"))
    [naming] = namings(names.values(), EfficientNetReference().dialects("tf_efficientnet_lite0"))
    assert {theirs: naming.reference_name(theirs) for theirs in names.values()} == {
        theirs: ours for ours, theirs in names.items()
    }
    state_dict = {
        names[key]: torch.zeros(tensor.shape) for key, tensor in _reference_names("tf_efficientnet_lite0").items()
    }
    with pytest.raises(UserError, match=r"but fits tf_efficientnet_lite0: add --arch tf_efficientnet_lite0"):
        fit(state_dict, "efficientnet_lite0", "w.pth")


def test_depths_order_the_stages():
    network = flax_network("efficientnet_b0")
    depths = [network.architecture.depth(name) for name in network.params]
    assert sorted(set(depths)) == [(0, 0), (1, 0), (2, 0), (2, 1), (3, 0), (4, 0), HEAD_DEPTH]
    assert network.architecture.width == network.params["classifier.kernel"].shape[0]


def test_every_network_has_a_reference():
    assert {architecture.family for architecture in ARCHITECTURES.values()} <= families.REFERENCES.keys()


def test_without_timm_its_networks_are_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(families.importlib.util, "find_spec", lambda name: None)
    assert families.reference_of("efficientnet_b0")
    with pytest.raises(UserError, match=r"converting tf_efficientnet_b0 needs timm: pip install .*\[convert\]'"):
        families.reference_of("tf_efficientnet_b0")


def test_a_file_that_fits_no_network_is_refused_with_the_missing_part():
    with pytest.raises(UserError, match="not an EfficientNet of this kind: it has no first block under a known name"):
        fit({"other.weight": torch.zeros(3)}, "efficientnet_b0", "w.pth")
