"""UPerNet on a ConvNeXt and on a Swin transformer against transformers', and the names of its files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from reference_checks import CLASSES, assert_same_function, assert_same_gradients, moved, network

from convert import flax_to_resnet, resnet_to_flax, upernet
from convert.names import namings
from convert.upernet import UPerNetReference
from sft_jax.errors import UserError
from sft_jax.models import ARCHITECTURES, convnext, find, segmentation, swin
from sft_jax.models.architecture import HEAD_DEPTH, Pretrained
from sft_jax.models.upernet_head import adaptive_mean
from sft_jax.models.weights import load_weights

CONVNEXT, SWIN = "convnext_of_test", "swin_of_test"
BACKBONES = {
    CONVNEXT: (convnext, convnext.Variant((1, 2, 1, 1), (8, 16, 20, 32)), (Pretrained(), "nobody")),
    SWIN: (swin, swin.Variant((1, 2, 1, 2), (1, 2, 2, 4), 8), ()),
}
NAMES = [f"upernet_{backbone}" for backbone in BACKBONES]
WIDTH = 24


@pytest.fixture(autouse=True)
def known(monkeypatch):
    for name, (family, variant, more) in BACKBONES.items():
        monkeypatch.setitem(family.VARIANTS, name, variant)
        monkeypatch.setitem(ARCHITECTURES, name, family.architecture(name, variant, *more))
        monkeypatch.setitem(segmentation.REFERENCES, f"upernet_{name}", "transformers")
    monkeypatch.setattr(upernet, "WIDTH", WIDTH)
    monkeypatch.setattr(segmentation.HEADS["upernet"].__init__, "__kwdefaults__", {"epsilon": None, "width": WIDTH})


def torch_network(name):
    """Returns transformers' network with an auxiliary head, and weights other than those of initialisation."""
    torch.manual_seed(0)
    config = upernet._network(name, CLASSES).config
    config.use_auxiliary_head, config.auxiliary_channels = True, 8
    config.auxiliary_in_channels = find(name).channels[2]
    config.id2label = {index: f"kind {index}" for index in range(CLASSES)}
    return moved(transformers.UperNetForSemanticSegmentation(config))


def named(name):
    """Returns a function that gives a state_dict of a module our names, as reading its file does."""

    def rename(state_dict):
        (naming,) = namings(state_dict, UPerNetReference().dialects(name))
        return {naming.reference_name(key): tensor for key, tensor in state_dict.items()}

    return rename


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_agrees(name):
    # The last map of a Swin is a single window at both sizes, which transformers shifts.
    assert_same_function(torch_network(name), network(find(name)), sizes=(64, 76), named=named(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["upernet_convnext_tiny", "upernet_swin_t"])
def test_every_stage_of_whole_networks_agrees(name, monkeypatch):
    monkeypatch.setattr(upernet, "WIDTH", 512)
    monkeypatch.setattr(segmentation.HEADS["upernet"].__init__, "__kwdefaults__", {"epsilon": None, "width": 512})
    assert_same_function(torch_network(name), network(find(name)), sizes=(128, 288), named=named(name))


# A single pooled value per image: with a ConvNeXt, whose two images differ little, older releases of torch round more.
@pytest.mark.long
@pytest.mark.parametrize(("name", "tolerance"), [*zip(NAMES, (1e-5, 1e-9), strict=True)])
def test_gradients_and_statistics_agree(name, tolerance):
    def renamed(state_dict):
        return UPerNetReference().adapted(named(name)(state_dict), name)[0]

    assert_same_gradients(torch_network(name), find(name), size=64, tolerance=tolerance, named=renamed)


@pytest.mark.parametrize(("length", "bins"), [(16, 6), (16, 3), (7, 3), (2, 6), (1, 2)])
def test_pooled_parts_are_torchs(length, bins):
    x = np.random.default_rng(0).standard_normal((2, length, length + 1, 3)).astype(np.float32)
    wanted = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(x).permute(0, 3, 1, 2), bins)
    np.testing.assert_allclose(adaptive_mean(jnp.asarray(x), bins), wanted.permute(0, 2, 3, 1), atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_files_of_transformers_are_converted_there_and_back(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(UPerNetReference, "sizes", lambda self, arch: (32,))
    module = torch_network(name)
    module.save_pretrained(tmp_path / "theirs")
    file, ours, back = (tmp_path / path for path in ("theirs/model.safetensors", "ours.safetensors", "back.pth"))
    processor = {"size": {"height": 64, "width": 64}, "resample": 2, "do_resize": True,
                 "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}  # fmt: skip
    (tmp_path / "theirs" / "preprocessor_config.json").write_text(json.dumps(processor))
    resnet_to_flax.convert(name, file, "", ours)
    out = capsys.readouterr().out
    assert "its auxiliary head (8 tensors auxiliary_head.*), which only helps in training, was left out" in out
    weights = load_weights(ours)
    assert weights.class_names == tuple(f"kind {index}" for index in range(CLASSES))
    assert (weights.task, json.loads(weights.metadata["preprocess"])["size"]) == ("segmentation", 64)
    flax_to_resnet.convert(None, ours, back)
    assert "transformers.UperNetForSemanticSegmentation" in capsys.readouterr().out
    theirs, found = safetensors.torch.load_file(file), torch.load(back, weights_only=True)
    left = {key for key in theirs if key.startswith(("auxiliary_head.", "backbone.swin.layernorm."))}
    left |= {key for key in theirs if key.endswith("relative_position_index")}  # of earlier releases
    assert found.keys() == theirs.keys() - left
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in found.items())
    config = upernet._network(name, CLASSES).config
    loaded, info = type(module).from_pretrained(None, config=config, state_dict=found, output_loading_info=True)
    assert set(info["missing_keys"]) <= left
    assert not info["unexpected_keys"]
    pictures = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(pictures).logits, module(pictures).logits)


@pytest.mark.long
@pytest.mark.parametrize("backbone", ["resnet18", "mit_b0", "tf_efficientnet_lite0", SWIN, "convnextv2_atto"])
def test_the_head_reads_the_maps_of_all_backbones(backbone):
    found = find(f"upernet_{backbone}")
    built = network(found)
    normed = any(key.startswith("classifier.norms.") for key in built.params)
    assert normed == backbone.startswith(("swin", "convnext"))
    inputs = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    stages = jax.eval_shape(
        lambda params, stats, x: dict(built.bind(params, stats).stages(x)), built.params, built.batch_stats, inputs
    )
    assert stages["classifier"].shape == (2, 16, 16, CLASSES)
    for key in built.params | built.batch_stats:
        assert (found.depth(key) == HEAD_DEPTH) == key.startswith("classifier.")


def test_a_classifiers_weights_lose_the_norm_that_the_head_replaces():
    arrays = {"layers.0.blocks.0.norm1.scale": np.ones(8), "norm.scale": np.ones(64), "head.bias": np.ones(5)}
    assert find(f"upernet_{SWIN}").adopted(arrays).keys() == {"backbone.layers.0.blocks.0.norm1.scale"}
    assert "backbone.norm.scale" in find(f"fcn_{SWIN}").adopted(arrays)


def test_another_backbone_is_named(tmp_path, monkeypatch):
    torch_network(NAMES[0]).save_pretrained(tmp_path)
    monkeypatch.setattr("sys.argv", ["resnet_to_flax.py", "--arch", "upernet_convnext_tiny", "--state-dict",
                                     str(tmp_path / "model.safetensors"), "--output", "a.safetensors"])  # fmt: skip
    with pytest.raises(UserError, match=f"does not fit upernet_convnext_tiny, but fits {NAMES[0]}: add --arch"):
        resnet_to_flax.main()
