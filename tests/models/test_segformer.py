"""SegFormer and its encoders, Mix Transformers, against transformers', and the names of its files."""

import json

import jax
import jax.numpy as jnp
import pytest
import safetensors.torch
import torch
import transformers
from reference_checks import CLASSES, assert_same_function, assert_same_gradients, moved, network

from convert import flax_to_resnet, resnet_to_flax
from convert.names import namings
from convert.segformer import DIALECTS
from convert.sources import read
from sft_jax.errors import UserError
from sft_jax.models import ARCHITECTURES, architecture, find, initial_arrays, mit, segmentation
from sft_jax.models.architecture import HEAD_DEPTH, Builder
from sft_jax.models.weights import load_weights

ENCODER, WHOLE = "mit_of_test", "segformer_mit_of_test"
SMALL = mit.Variant((1, 2, 1, 1), (8, 16, 20, 32), 24)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(mit.VARIANTS, ENCODER, SMALL)
    monkeypatch.setitem(ARCHITECTURES, ENCODER, mit.architecture(ENCODER, SMALL))
    monkeypatch.setitem(segmentation.REFERENCES, WHOLE, "transformers")


def torch_network(name, variant=SMALL):
    """Returns transformers' network, with weights other than those of initialisation."""
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        depths=[*variant.blocks],
        hidden_sizes=[*variant.channels],
        decoder_hidden_size=variant.decoder,
        drop_path_rate=0.0,
        id2label={index: f"kind {index}" for index in range(CLASSES)},
    )
    dense = name.startswith("segformer_")
    kind = transformers.SegformerForSemanticSegmentation if dense else transformers.SegformerForImageClassification
    return moved(kind(config))


def of_file(state_dict):
    """Returns a state_dict of a module under the names of published files."""
    (naming,) = namings(state_dict, DIALECTS)
    return {naming.reference_name(name): tensor for name, tensor in state_dict.items()}


@pytest.mark.parametrize("name", [ENCODER, WHOLE])
def test_every_stage_agrees(name):
    assert_same_function(torch_network(name), network(find(name)), sizes=(64, 77), named=of_file)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mit_b0", "segformer_mit_b0", "segformer_mit_b2"])
def test_every_stage_of_whole_networks_agrees(name):
    module = torch_network(name, mit.VARIANTS[name.removeprefix("segformer_")])
    assert_same_function(module, network(find(name)), sizes=(128,), named=of_file)


@pytest.mark.long
def test_gradients_and_statistics_agree():
    assert_same_gradients(torch_network(WHOLE), find(WHOLE), size=64, tolerance=1e-9, named=of_file)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name in mit.VARIANTS if name != ENCODER))
def test_variants_are_those_of_the_published_files(name):
    """The numbers of parameters in the model cards and the paper, of the encoder without a head and of the whole."""
    counts = {
        "mit_b0": (3.3, 3.7), "mit_b1": (13.2, 13.7), "mit_b2": (24.2, 27.4), "mit_b3": (44.1, 47.2),
        "mit_b4": (60.8, 64.0), "mit_b5": (81.4, 84.6),
    }  # fmt: skip
    built = network(find(f"segformer_{name}"))
    sizes = {key: leaf.size / 1e6 for key, leaf in built.params.items()}
    encoder = sum(size for key, size in sizes.items() if key.startswith("backbone."))
    assert (round(encoder, 1), round(sum(sizes.values()), 1)) == counts[name]
    for key in built.params | built.batch_stats:
        assert (built.architecture.depth(key) == HEAD_DEPTH) == key.startswith("classifier.")


def run_converter(arch, file, output, *flags):
    args = resnet_to_flax.parse(["--arch", arch, "--state-dict", str(file), "--output", str(output), *flags])
    own = {name: getattr(args, name) for name in ("size", "classes") if getattr(args, name) is not None}
    resnet_to_flax.convert(arch, file, "", output, **own)


@pytest.fixture
def saved(tmp_path):
    """Returns the files of both networks, as transformers writes them, with their configurations beside them."""
    files = {}
    for name in (ENCODER, WHOLE):
        torch_network(name).save_pretrained(tmp_path / name)
        files[name] = tmp_path / name / "model.safetensors"
        processor = {"size": {"height": 64, "width": 64}, "resample": 2, "do_resize": True,
                     "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}  # fmt: skip
        (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(processor))
    return files


@pytest.mark.long
def test_the_files_of_transformers_are_converted_there_and_back(saved, tmp_path, capsys):
    for name, file in saved.items():
        ours, back = tmp_path / f"{name}.safetensors", tmp_path / f"{name}.back.safetensors"
        run_converter(name, file, ours)
        weights = load_weights(ours)
        assert weights.class_names == tuple(f"kind {index}" for index in range(CLASSES))
        assert weights.task == ("segmentation" if name == WHOLE else "classification")
        assert json.loads(weights.metadata["preprocess"])["size"] == 64
        capsys.readouterr()
        flax_to_resnet.convert(None, ours, back)
        assert "model = transformers.Segformer" in capsys.readouterr().out
        theirs, found = safetensors.torch.load_file(file), safetensors.torch.load_file(back)
        assert found.keys() == theirs.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in theirs.items())
        kind = type(torch_network(name))
        loaded, info = kind.from_pretrained(
            None, config=torch_network(name).config, state_dict=found, output_loading_info=True
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        pictures = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(loaded.eval()(pictures).logits, torch_network(name)(pictures).logits)


@pytest.mark.parametrize(
    ("renamed", "notice"),
    [
        (lambda tensors: torch_network(WHOLE).state_dict(), None),
        (lambda tensors: {f"model.{name}": tensor for name, tensor in tensors.items()}, "model"),
        (lambda tensors: {name.removeprefix("segformer."): tensor for name, tensor in tensors.items()}, "alone"),
    ],
)
def test_other_names_are_read(renamed, notice, saved, tmp_path):
    theirs = safetensors.torch.load_file(saved[WHOLE])
    torch.save(renamed(theirs), tmp_path / "other.pth")
    checkpoint = read(tmp_path / "other.pth", arch=WHOLE)
    assert checkpoint.state_dict.keys() == theirs.keys()
    assert all(torch.equal(checkpoint.state_dict[name], tensor) for name, tensor in theirs.items())
    assert notice is None or any(notice in line for line in checkpoint.notices)


def test_another_size_is_named(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["resnet_to_flax.py", "--arch", "mit_b0", "--state-dict", str(saved[ENCODER]),
                                     "--output", str(tmp_path / "a.safetensors")])  # fmt: skip
    with pytest.raises(UserError, match=f"does not fit mit_b0, but fits {ENCODER}: add --arch {ENCODER}"):
        resnet_to_flax.main()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("segformer_vit_tiny_patch16_224", "segformer heads need maps of several sizes; use fcn_vit_"),
        ("segformer_resnet18_os8", "segformer heads read maps of all strides; use segformer_resnet18"),
    ],
)
def test_backbones_without_such_maps_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        architecture(name)


def test_images_too_small_for_the_reduced_keys_are_refused():
    find(WHOLE).check_size(29)
    with pytest.raises(UserError, match=r"config.data.size=28 is too small for mit_of_test, which takes 29 px or more"):
        find(WHOLE).check_size(28)


@pytest.mark.parametrize("name", ["segformer_resnet18", "segformer_tf_efficientnet_lite0", "segformer_swin_t"])
def test_the_head_reads_the_maps_of_other_backbones(name):
    found = find(name)
    built = network(found)
    assert built.params["classifier.linear_fuse.kernel"].shape == (1, 1, 4 * 256, 256)
    inputs = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    stages = jax.eval_shape(
        lambda params, stats, x: dict(built.bind(params, stats).stages(x)), built.params, built.batch_stats, inputs
    )
    assert stages["classifier"].shape == (2, 16, 16, CLASSES)


@pytest.mark.long
def test_dropout_of_the_head_drops_whole_channels():
    built = network(find(WHOLE))
    params, statistics = initial_arrays(Builder(built.architecture, CLASSES), 0)
    params = params | {"classifier.classifier.bias": jnp.zeros(CLASSES)}
    head = built.bind(params, statistics).classifier
    maps = [jnp.ones((2, side, side, width)) for side, width in zip((16, 8, 4, 2), SMALL.channels, strict=True)]
    plain, dropped = (head(maps, train=False, key=key) for key in (None, jax.random.key(0)))
    assert not jnp.allclose(plain, dropped)
    # The maps are constant: so are the outputs, if the same channels are dropped everywhere.
    assert jnp.allclose(dropped, dropped[:, :1, :1], atol=1e-5)
