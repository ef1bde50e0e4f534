"""Compares ConvNeXts with torchvision's and timm's; tests the names of other libraries, and a run of a tiny one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from timm.layers.grn import GlobalResponseNorm
from tiny_runs import StopAt, assert_same_run, one_device, run
from torchvision.models import convnext as torchvision_convnext

from convert import convnext as converter
from convert import families, fit, flax_to_resnet, keys, parity, resnet_to_flax, sources
from sft_jax import models
from sft_jax.config import complete
from sft_jax.errors import StoppedError, UserError
from sft_jax.export import export
from sft_jax.models import ARCHITECTURES, Network
from sft_jax.models.architecture import Builder, Pretrained
from sft_jax.models.convnext import VARIANTS, Variant, architecture
from sft_jax.models.convnext_block import ResponseNorm
from sft_jax.models.weights import load_weights
from sft_jax.run.folder import Run
from sft_jax.training import trainer as train_module

TINY = {
    "convnext_tiny_test": Variant((1, 1, 1, 1), (8, 12, 16, 24)),
    "convnextv2_tiny_test": Variant((1, 1, 1, 1), (8, 12, 16, 24), response_norm=True),
    "convnextv2_atto_test": Variant((1, 1, 1, 1), (4, 8, 12, 16), response_norm=True, as_convolutions=True),
}
V1, V2, ATTO = TINY
real_timm_network = timm.create_model  # a fixture replaces it
CLASSES = 5


def torch_network(name, outputs=CLASSES):
    """Returns the tiny network `name` of torchvision's or timm's."""
    variant = TINY[name]
    if variant.response_norm:
        settings = {"use_grn": True, "ls_init_value": None, "conv_mlp": variant.as_convolutions}
        return timm.models.ConvNeXt(depths=variant.blocks, dims=variant.channels, num_classes=outputs, **settings)
    stages = zip(variant.channels, (*variant.channels[1:], None), variant.blocks, strict=True)
    rows = [torchvision_convnext.CNBlockConfig(*stage) for stage in stages]
    return torchvision_convnext.ConvNeXt(rows, num_classes=outputs)


def with_random_weights(module, seed=0):
    """Moves all parameters away from their initial values, at which layer scales and response norms do nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            if re.search(r"scale|gamma", name):
                parameter.uniform_(0.2, 0.8, generator=generator)
            elif name.endswith("weight") and parameter.ndim > 1:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.normal_(float(name.endswith("weight")), 0.3, generator=generator)
    return module.eval()


@pytest.fixture(autouse=True, scope="module")
def known():
    with pytest.MonkeyPatch.context() as patch:
        for name, variant in TINY.items():
            patch.setitem(VARIANTS, name, variant)
            patch.setitem(ARCHITECTURES, name, architecture(name, variant, Pretrained(size=32, resize=32), "a test's"))
        patch.setattr(sources, "published", lambda arch, digest: None)
        patch.setattr(timm, "create_model", lambda arch, num_classes: torch_network(arch, num_classes))
        patch.setattr(
            torchvision.models, "get_model", lambda arch, weights, num_classes: torch_network(arch, num_classes)
        )
        patch.setattr(converter.ConvNeXtReference, "sizes", lambda self, arch: (33,))
        yield


def network(name, **settings):
    return Network.abstract(Builder(ARCHITECTURES[name], CLASSES, settings))


@pytest.mark.parametrize("name", TINY)
def test_every_stage_agrees_with_torch(name):
    module, ours = with_random_weights(torch_network(name)), network(name)
    arrays = keys.to_flax(module.state_dict(), ours)
    for size in (32, 69):
        comparison = parity.compare(module, ours, arrays, size, images=2)
        assert comparison.relative < 1e-5
        assert max(comparison.stages.values()) < 5e-5  # activations reach about 10
        assert len(comparison.stages) == 1 + 3 + sum(TINY[name].blocks)


@pytest.mark.long
@pytest.mark.parametrize("name", [V1, ATTO])
def test_gradients_agree_with_torch_in_float64(name):
    module = with_random_weights(torch_network(name)).double()
    images = np.random.default_rng(0).standard_normal((2, 33, 33, 3))
    weights = np.random.default_rng(1).standard_normal((2, CLASSES))
    (module(torch.from_numpy(images).permute(0, 3, 1, 2)) * torch.from_numpy(weights)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    with jax.enable_x64():
        ours = network(name, dtype=jnp.float64)

        @jax.jit
        def gradient(params):
            return jax.grad(lambda params: (ours.apply(params, {}, images, train=True)[0] * weights).sum())(params)

        result = gradient(keys.to_flax(module.state_dict(), ours))
    wanted = keys.to_flax(gradients, ours)
    assert result.keys() == wanted.keys()
    for key, array in wanted.items():
        np.testing.assert_allclose(result[key], array, rtol=0, atol=1e-9 * np.abs(array).max(), err_msg=key)


def test_response_norms_of_zeros_have_torchs_gradient():
    x = np.random.default_rng(0).standard_normal((2, 3, 3, 4)).astype(np.float32)
    x[0, :, :, 1] = 0
    theirs, their_x = GlobalResponseNorm(4), torch.from_numpy(x).requires_grad_()
    torch.nn.init.ones_(theirs.weight)
    theirs(their_x).square().sum().backward()
    ours = ResponseNorm(4)
    ours.scale[...] = jnp.ones(4)
    gradient = jax.grad(lambda x: jnp.square(ours(x.reshape(2, 9, 4))).sum())(jnp.asarray(x))
    np.testing.assert_allclose(gradient, their_x.grad, atol=1e-5)


def test_logits_in_bfloat16_are_close():
    module = with_random_weights(torch_network(V1))
    ours = network(V1, dtype=jnp.bfloat16)
    arrays = keys.to_flax(module.state_dict(), ours)
    comparison = parity.compare(module, ours, arrays, 32, images=2)
    assert 1e-5 < comparison.relative < 3e-2


@pytest.mark.long
def test_stochastic_depth_skips_blocks_per_image_and_scales_the_others():
    """Rates grow from 0 in the first block, as torchvision's; a kept branch is divided by its survival probability."""
    module = with_random_weights(torch_network(V1))
    ours = network(V1, stochastic_depth=0.5)
    arrays = keys.to_flax(module.state_dict(), ours)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((1, 32, 32, 3)), jnp.float32).repeat(64, 0)

    @jax.jit
    def run(key):
        model = ours.bind(arrays, {})
        return dict(model.stages(images, key=key)), dict(model.stages(images))

    dropped, kept = run(jax.random.key(0))
    np.testing.assert_array_equal(dropped["trunk.0.blocks.0"], kept["trunk.0.blocks.0"])
    before, after = dropped["trunk.1.downsample"], dropped["trunk.1.blocks.0"]
    skipped = (after == before).all((1, 2, 3))
    assert 1 <= skipped.sum() <= 20  # at a rate of 1/6
    branch = (kept["trunk.1.blocks.0"] - kept["trunk.1.downsample"]) / (1 - 0.5 / 3)
    np.testing.assert_allclose((after - before)[~skipped], branch[~skipped], atol=1e-5)


def test_published_networks_have_the_references_parameters():
    for name in ("convnext_small", "convnextv2_nano"):
        ours = Network.abstract(models.builder(complete({"model.name": name}).model, 1000))
        with torch.device("meta"):
            module = real_timm_network(name)
        assert sum(np.prod(leaf.shape) for leaf in ours.params.values()) == sum(p.numel() for p in module.parameters())


def test_parameters_with_one_value_per_channel_do_not_decay():
    for name in TINY:
        decayed = [key for key in network(name).params if ARCHITECTURES[name].decays(key)]
        assert all(key.endswith(".kernel") for key in decayed)
        assert len(decayed) == 1 + 3 + 3 * sum(TINY[name].blocks) + 1
    assert ARCHITECTURES[V1].depth("trunk.2.downsample.0.scale") == ARCHITECTURES[V1].depth("trunk.2.blocks.0.gamma")
    assert ARCHITECTURES[V1].depth("norm.scale") == (4, 0) < ARCHITECTURES[V1].depth("fc.kernel")


def _facebook(state_dict):
    """Renames timm's V2 to facebookresearch's."""
    pairs = [
        (r"stem\.", "downsample_layers.0."), (r"stages\.(\d)\.downsample", r"downsample_layers.\1"),
        (r"\.blocks\.", "."), (r"conv_dw", "dwconv"), (r"mlp\.fc", "pwconv"), (r"mlp\.grn\.weight", "grn.gamma"),
        (r"mlp\.grn\.bias", "grn.beta"), (r"^head\.norm", "norm"), (r"^head\.fc", "head"),
    ]  # fmt: skip
    renamed = {}
    for name, tensor in state_dict.items():
        if ".grn." in name:
            tensor = tensor[None, None, None]
        elif re.search(r"mlp\.fc\d\.weight", name):
            tensor = tensor.reshape(tensor.shape[:2])
        for pattern, other in pairs:
            name = re.sub(pattern, other, name)
        renamed[name] = tensor
    return renamed


def _hugging_face(name):
    variant = TINY[name]
    kind = "ConvNextV2" if variant.response_norm else "ConvNext"
    config = getattr(transformers, f"{kind}Config")(
        depths=list(variant.blocks), hidden_sizes=list(variant.channels), num_labels=CLASSES, image_size=64
    )
    return with_random_weights(getattr(transformers, f"{kind}ForImageClassification")(config))


def convert_file(name, state_dict, folder):
    torch.save(state_dict, folder / "theirs.pth")
    resnet_to_flax.convert(name, folder / "theirs.pth", "", folder / "ours.safetensors", dataset="none")
    return load_weights(folder / "ours.safetensors")


def logits(name, weights, images):
    _, result = parity.flax_activations(network(name), weights.arrays, (images,))
    return result


IMAGES = np.random.default_rng(2).standard_normal((2, 64, 64, 3), np.float32)


def torch_logits(module):
    with torch.no_grad():
        output = module(torch.from_numpy(IMAGES).permute(0, 3, 1, 2))
    return getattr(output, "logits", output).numpy()


@pytest.mark.long
@pytest.mark.parametrize("name", [V1, ATTO])
def test_files_of_hugging_face_are_read(name, tmp_path, capsys):
    module = _hugging_face(name)
    weights = convert_file(name, module.state_dict(), tmp_path)
    np.testing.assert_allclose(logits(name, weights, IMAGES), torch_logits(module), atol=1e-4)
    assert "its keys are Hugging Face's" in capsys.readouterr().out


@pytest.mark.long
def test_files_of_facebookresearch_are_read(tmp_path, capsys):
    name = V2
    module = with_random_weights(torch_network(name))
    weights = convert_file(name, {"model": _facebook(module.state_dict())}, tmp_path)
    np.testing.assert_allclose(logits(name, weights, IMAGES), torch_logits(module), atol=1e-5)
    assert "its keys are facebookresearch's" in capsys.readouterr().out


@pytest.mark.long
def test_files_of_timm_are_read_for_a_network_of_torchvision(tmp_path, capsys):
    variant = TINY[V1]
    module = timm.models.ConvNeXt(depths=variant.blocks, dims=variant.channels, num_classes=CLASSES)
    weights = convert_file(V1, with_random_weights(module).state_dict(), tmp_path)
    np.testing.assert_allclose(logits(V1, weights, IMAGES), torch_logits(module), atol=1e-5)
    assert "its keys are timm's; renamed" in capsys.readouterr().out


def test_a_file_of_another_size_is_named(tmp_path):
    reference = families.reference_of("convnext_small")
    with torch.device("meta"):
        state_dict = torchvision_convnext.convnext_small().state_dict()
    assert reference.siblings(state_dict) == ["convnext_small"]
    module = torch_network(V2)
    with pytest.raises(UserError, match="convnext"):
        fit.fit(module.state_dict(), "convnextv2_nano", "theirs.pth")


@pytest.fixture(scope="module")
def converted(known, tmp_path_factory):
    folder = tmp_path_factory.mktemp("convnext")
    state_dict = with_random_weights(torch_network(V1)).state_dict()
    convert_file(V1, state_dict, folder)
    return state_dict, folder / "ours.safetensors"


CHANGES = {"model__name": V1, "data__size": 32, "optimizer__learning_rate": 0.05}


@pytest.mark.slow
def test_it_trains_is_exported_and_converted_back(converted, tmp_path, monkeypatch):
    state_dict, path = converted
    flax_to_resnet.convert(None, path, tmp_path / "same.pth")
    same = torch.load(tmp_path / "same.pth")
    assert same.keys() == state_dict.keys()
    assert all(torch.equal(same[name], state_dict[name]) for name in same)
    monkeypatch.setattr(train_module, "Devices", one_device)
    changes = CHANGES | {"init": str(path), "regularization__stochastic_depth": 0.1}
    results = run(tmp_path / "run", epochs=8, **changes)
    assert results["test_loss"] < np.log(5)
    difference, _ = export(tmp_path / "run", "best", tmp_path / "program.stablehlo")
    assert difference < 1e-5
    flax_to_resnet.convert(tmp_path / "run", None, tmp_path / "back.pth")
    module = torch_network(V1)
    module.load_state_dict(torch.load(tmp_path / "back.pth"))
    best = Run(tmp_path / "run").checkpoints.restore("best").arrays
    np.testing.assert_array_equal(
        best["params/trunk.1.blocks.0.gamma"][0, 0], module.features[3][0].layer_scale[:, 0, 0].detach()
    )


@pytest.mark.slow
def test_a_stopped_run_resumes_bit_identically(converted, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "Devices", one_device)
    changes = CHANGES | {"init": str(converted[1]), "regularization__stochastic_depth": 0.2}
    run(tmp_path / "whole", **changes)
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "StopRequest", lambda: StopAt(3))
        with pytest.raises(StoppedError):
            run(tmp_path / "stopped", **changes)
    run(tmp_path / "stopped", resume=True, **changes)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
