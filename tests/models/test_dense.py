"""Networks for segmentation against torchvision's: stages, gradients, names; dilated backbones against timm's."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from reference_checks import CLASSES, assert_close, assert_same_function, assert_same_gradients, images, moved, network
from torchvision.models.resnet import Bottleneck as TorchBottleneck
from torchvision.models.resnet import ResNet as TorchResNet
from torchvision.models.segmentation import deeplabv3, fcn

import sft_jax
from convert import flax_to_onnx, flax_to_resnet, keys, resnet_to_flax
from sft_jax.errors import UserError
from sft_jax.models import ARCHITECTURES, Network, architecture, find
from sft_jax.models.architecture import HEAD_DEPTH, Builder
from sft_jax.models.dropout import dropout
from sft_jax.models.residual_block import Bottleneck
from sft_jax.models.resnet import Variant
from sft_jax.models.resnet import architecture as resnet
from sft_jax.models.segmentation import REFERENCES
from sft_jax.models.weights import load_weights

SMALL = Variant(Bottleneck, (1, 2, 1, 2))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "small", resnet("small", SMALL))


def torch_network(kind):
    """Returns torchvision's network of this kind on a small ResNet, with an auxiliary head."""
    torch.manual_seed(0)
    backbone = TorchResNet(TorchBottleneck, [*SMALL.layers], replace_stride_with_dilation=[False, True, True])
    make = {"fcn": fcn._fcn_resnet, "deeplabv3": deeplabv3._deeplabv3_resnet}[kind]
    return moved(make(backbone, CLASSES, True))


def torchvisions(name):
    torch.manual_seed(0)
    return moved(torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=CLASSES))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["fcn", "deeplabv3"])
def test_every_stage_of_a_dilated_resnet_agrees(kind, small):
    assert_same_function(torch_network(kind), network(find(f"{kind}_small")), sizes=(49,))


@pytest.mark.long
def test_every_stage_of_a_dilated_mobilenet_agrees():
    name = "lraspp_mobilenet_v3_large"
    assert_same_function(torchvisions(name), network(find(name)), sizes=(49,))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name, library in REFERENCES.items() if library == "torchvision"))
def test_every_stage_of_whole_networks_agrees(name):
    assert_same_function(torchvisions(name), network(find(name)), sizes=(64, 97))


@pytest.mark.long
@pytest.mark.parametrize("kind", [pytest.param("fcn", marks=pytest.mark.slow), "deeplabv3"])
def test_gradients_and_statistics_agree(kind, small):
    assert_same_gradients(torch_network(kind), find(f"{kind}_small"), size=33)


@pytest.mark.slow
def test_gradients_and_statistics_of_lraspp_agree():
    # torchvision's MobileNetV3 keeps 0.99 of its statistics in a step, ours 0.9.
    module = torchvisions("lraspp_mobilenet_v3_large")
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 0.1
    assert_same_gradients(module, find("lraspp_mobilenet_v3_large"), size=33, tolerance=1e-6)


@pytest.mark.long
@pytest.mark.parametrize(
    ("ours", "theirs", "stride"),
    [("resnet18", "resnet18", 8), ("resnet18", "resnet18", 16), ("tf_efficientnet_lite0", "tf_efficientnet_lite0", 16),
     ("mobilenetv3_small_100", "mobilenetv3_small_100", 8)],
)  # fmt: skip
def test_the_maps_of_dilated_backbones_are_timms(ours, theirs, stride):
    module = moved(timm.create_model(theirs, features_only=True, output_stride=stride, out_indices=(4,)))
    dense = find(f"fcn_{ours}_os{stride}")
    assert dense.strides[-1] == stride
    built = network(dense)
    whole = timm.create_model(theirs)
    arrays = keys.to_flax(
        whole.state_dict() | {key: value for key, value in module.state_dict().items() if key in whole.state_dict()},
        Network.abstract(Builder(ARCHITECTURES[ours], 1000)),
    )
    arrays = dense.adopted(arrays)
    drawn = {key: np.zeros(leaf.shape, np.float32) for key, leaf in (built.params | built.batch_stats).items()}
    params, batch_stats = ({key: (drawn | arrays)[key] for key in part} for part in (built.params, built.batch_stats))
    inputs = images(65)
    found = jax.jit(lambda params, stats, x: built.bind(params, stats).backbone.maps(x)[-1])(
        params, batch_stats, inputs
    )
    with torch.no_grad():
        wanted = module(torch.from_numpy(inputs).permute(0, 3, 1, 2))[0].permute(0, 2, 3, 1).numpy()
    assert_close({"map": found}, {"map": wanted}, 1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "size", "rows"),
    [("linear_vit_tiny_patch16_224", 32, 2), ("linear_convnextv2_atto", 64, 2), ("fcn_swin_t", 64, 2),
     ("deeplabv3_regnet_y_400mf", 64, 2), ("linear_resnet18", 64, 2), ("lraspp_efficientnet_lite0", 64, 8)],
)  # fmt: skip
def test_every_family_has_heads_for_pixels(name, size, rows):
    found = find(name)
    settings = {"size": size} if found.positions is not None else {}
    built = Network.abstract(Builder(found, CLASSES, settings))
    arguments = built.params, built.batch_stats, jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    outputs, statistics = jax.eval_shape(lambda *given: built.apply(*given, train=True), *arguments)
    assert outputs.shape == (2, size, size, CLASSES)
    assert outputs.dtype == jnp.float32
    assert statistics.keys() == built.batch_stats.keys()
    stages = jax.eval_shape(lambda params, stats, x: dict(built.bind(params, stats).stages(x)), *arguments)
    assert stages["classifier"].shape == (2, rows, rows, CLASSES)
    depths = {key: found.depth(key) for key in built.params}
    assert {key for key, depth in depths.items() if depth == HEAD_DEPTH} == {
        key for key in built.params if key.startswith("classifier.")
    }
    assert not [
        key for key in built.params if key.startswith(("backbone.fc.", "backbone.head.", "backbone.classifier"))
    ]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    "name",
    ["fcn_swin_t", "deeplabv3_vit_tiny_patch16_224", "linear_swin_t", "segformer_mit_b0", "upernet_convnextv2_atto",
     "upernet_resnet18", "lraspp_efficientnet_lite0"],
)  # fmt: skip
def test_every_head_takes_maps_of_either_dtype_in_bfloat16(name, train):
    """Maps are float32 where the backbone's residual stream is."""
    found, size = find(name), 32
    settings = {"size": size} if found.positions is not None else {}
    built = Network.abstract(Builder(found, CLASSES, settings | {"dtype": jnp.bfloat16}))
    arguments = built.params, built.batch_stats, jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    outputs, statistics = jax.eval_shape(lambda *given: built.apply(*given, train=train), *arguments)
    assert (outputs.shape, outputs.dtype) == ((2, size, size, CLASSES), jnp.float32)
    assert all(leaf.dtype == jnp.float32 for leaf in statistics.values())


def test_dropout_does_not_depend_on_the_number_of_devices_and_keeps_the_mean():
    x = jnp.ones((8, 6, 6, 16))
    whole = dropout(x, jax.random.key(0), 0.5, None)
    parts = jax.pmap(lambda x: dropout(x, jax.random.key(0), 0.5, "devices"), axis_name="devices")(
        x.reshape(8, 1, 6, 6, 16)
    )
    np.testing.assert_array_equal(whole, parts.reshape(x.shape))
    assert set(np.unique(whole)) == {0.0, 2.0}
    assert float(whole.mean()) == pytest.approx(1, abs=0.05)
    assert dropout(x, None, 0.5, None) is x


@pytest.mark.long
def test_bfloat16_and_rematerialisation(small):
    found, inputs = find("fcn_small"), images(17)
    plain, kept, short = (
        Network.abstract(Builder(found, CLASSES, settings, rematerialise=rematerialise))
        for settings, rematerialise in (({}, False), ({}, True), ({"dtype": jnp.bfloat16}, False))
    )

    def run(own, params, batch_stats):
        return own.apply(params, batch_stats, inputs, train=False)[0]

    programs = (str(jax.make_jaxpr(functools.partial(run, own))(own.params, own.batch_stats)) for own in (plain, kept))
    assert ["remat" in program for program in programs] == [False, True]
    arrays = keys.to_flax(torch_network("fcn").state_dict(), plain)
    weights = [{key: arrays[key] for key in part} for part in (plain.params, plain.batch_stats)]
    wide, narrow = (jax.jit(functools.partial(run, own))(*weights) for own in (plain, short))
    assert narrow.dtype == jnp.float32
    assert_close({"": narrow}, {"": wide}, 0.05)
    assert not np.array_equal(narrow, wide)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("fcn_resnet19", "unknown config.model.name='fcn_resnet19'; did you mean 'fcn_resnet1"),
        ("fcn_swin_t_os8", "fcn_swin_t_os8: swin_t cannot be dilated, its last map has a stride of 32; use fcn_swin_t"),
        ("lraspp_resnet18", "lraspp_resnet18: lraspp heads are for MobileNetV3 and EfficientNet; use fcn_resnet18"),
    ],
)
def test_names_of_no_network_are_refused(name, line):
    with pytest.raises(UserError) as caught:
        architecture(name)
    assert str(caught.value).startswith(line)


@pytest.mark.slow
def test_a_file_of_torchvisions_is_converted_there_and_back(tmp_path, capsys, monkeypatch):
    name = "lraspp_mobilenet_v3_large"
    module = torchvisions(name)
    file, ours, back = tmp_path / "theirs.pth", tmp_path / "ours.safetensors", tmp_path / "back.safetensors"
    torch.save({"model": {f"module.{key}": value for key, value in module.state_dict().items()}}, file)
    monkeypatch.setattr("convert.segmentation.SegmentationReference.sizes", lambda self, arch: (33,))
    run = ["resnet_to_flax.py", "--arch", name, "--state-dict", str(file), "--classes", "a,b,c,d,e", "--size", "64"]
    monkeypatch.setattr("sys.argv", [*run, "--output", str(ours)])
    resnet_to_flax.main()
    out = capsys.readouterr().out
    assert f"wrote {ours}: {name}, 5 classes (a, b, c and 2 more)" in out
    weights = load_weights(ours)
    assert (weights.task, weights.outputs, weights.arch) == ("segmentation", CLASSES, name)
    assert json.loads(weights.metadata["preprocess"])["fit"] == "pad"
    assert float(weights.metadata["logit_difference"]) < 1e-4
    monkeypatch.setattr("sys.argv", ["flax_to_resnet.py", "--weights", str(ours), "--output", str(back)])
    flax_to_resnet.main()
    assert f"model = torchvision.models.segmentation.{name}(num_classes=5)" in capsys.readouterr().out
    tensors = safetensors.torch.load_file(back)
    assert tensors.keys() == module.state_dict().keys()
    assert all(torch.equal(tensors[key], value) for key, value in module.state_dict().items())
    flax_to_onnx.convert(None, ours, tmp_path / "ours.onnx")
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    classifier = sft_jax.load(ours)
    assert classifier.predict(picture)[0].shape == (50, 70)
    inputs = np.asarray(classifier.inputs([classifier.preprocess.of_array(picture)])).transpose(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(tmp_path / "ours.onnx", providers=["CPUExecutionProvider"])
    (theirs,) = session.run(["logits"], {"images": inputs})
    np.testing.assert_allclose(theirs.transpose(0, 2, 3, 1), classifier.logits(picture), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arch", "line"),
    [
        ("fcn_resnet50", "add --arch lraspp_mobilenet_v3_large"),
        ("fcn_resnet18", "fcn_resnet18 exists in no library of torch: of these networks only deeplabv3_mobilenet_v3"),
        ("resnet18", "is not a ResNet of torchvision's family"),
    ],
)
def test_another_network_is_refused(arch, line, tmp_path, monkeypatch):
    torch.save(torchvisions("lraspp_mobilenet_v3_large").state_dict(), tmp_path / "theirs.pth")
    run = ["resnet_to_flax.py", "--arch", arch, "--state-dict", str(tmp_path / "theirs.pth")]
    monkeypatch.setattr("sys.argv", [*run, "--output", str(tmp_path / "ours.safetensors")])
    with pytest.raises(UserError) as caught:
        resnet_to_flax.main()
    assert line in str(caught.value)
