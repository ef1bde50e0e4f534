"""Tests of the metadata of a converted file: class names and preprocessing."""

import json
import sys

import checkpoints
import pytest
import safetensors
import torch
import torchvision

from convert import classes, facts, flax_to_onnx, flax_to_resnet, reference, resnet_to_flax, trained, unwrap
from convert.fit import Fit
from sft_jax.errors import UserError
from sft_jax.models import ARCHITECTURES
from sft_jax.models.weights import load_weights

NAMES = ("ant", "bee", "cat", "dög", "e, f")
IMAGENET = facts.of_weights("resnet18", "IMAGENET1K_V1")


class TestNames:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("names.txt", "ant\nbee \ncat\n dög\ne, f\n\n"),
            ("bom.txt", "\ufeffant\r\nbee\r\ncat\r\ndög\r\ne, f"),
            ("list.json", json.dumps(NAMES)),
            ("by_label.json", json.dumps({str(label): name for label, name in enumerate(NAMES)})),
            ("by_name.json", json.dumps({name: label for label, name in reversed(list(enumerate(NAMES)))})),
            ("config.json", json.dumps({"id2label": {str(label): name for label, name in enumerate(NAMES)}})),
            ("keras.json", json.dumps({str(label): [f"n{label}", name] for label, name in enumerate(NAMES)})),
        ],
    )
    def test_names_are_read_from_files(self, tmp_path, name, text):
        (tmp_path / name).write_bytes(text.encode())
        assert classes.parse(str(tmp_path / name)) == NAMES

    def test_names_are_read_from_the_command_line(self):
        assert classes.parse("ant, bee,cat") == ("ant", "bee", "cat")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("nosuch.txt", "no such file; separate names with commas: --classes ant,bee"),
            ("ant,,bee", "--classes ant,,bee: a name is empty"),
        ],
    )
    def test_unusable_names_are_refused(self, text, message):
        with pytest.raises(UserError, match=message):
            classes.parse(text)

    @pytest.mark.parametrize(
        "content", [b"", b"ant\n\nbee", b"{", b"3", b'{"0": "ant", "2": "bee"}', b'{"a": "b"}', b"\xff\xfe\x00"]
    )
    @pytest.mark.parametrize("suffix", [".txt", ".json"])
    def test_unusable_files_are_refused(self, tmp_path, content, suffix):
        path = tmp_path / f"names{suffix}"
        path.write_bytes(content)
        if suffix == ".txt" and content.isascii() and content and b"\n\n" not in content:
            assert classes.parse(str(path)) == (content.decode(),)
            return
        with pytest.raises(UserError, match=f"--classes {path}") as caught:
            classes.parse(str(path))
        assert "\n" not in str(caught.value)

    def test_imagenets_names_are_the_default_for_a_thousand_outputs(self):
        names, notices = classes.choose(None, None, None, 1000, "w.pth")
        assert (names, len(notices)) == (IMAGENET.class_names, 1)
        assert "assuming ImageNet's classes for 1,000 outputs; if not, use --dataset none" in notices[0]
        assert classes.choose(None, None, "imagenet", 1000, "w.pth") == (IMAGENET.class_names, [])
        assert classes.choose(None, None, "none", 1000, "w.pth") == (None, [])
        assert classes.choose(None, None, None, 10, "w.pth") == (None, [])

    def test_names_of_the_user_override_those_of_the_file(self):
        assert classes.choose(NAMES, ("a", "b", "c", "d", "e"), None, 5, "w.pth") == (NAMES, [])
        assert classes.choose(None, NAMES, None, 5, "w.pth") == (NAMES, [])
        wrong = "ignoring its 5 class names, as it has 6 outputs"
        assert classes.choose(None, NAMES, None, 6, "w.pth") == (None, [wrong])

    @pytest.mark.parametrize(("outputs", "words"), [(4, "4 outputs"), (0, "no head")])
    def test_another_number_of_names_is_refused(self, outputs, words):
        with pytest.raises(UserError, match=f"5 class names given, but w.pth has {words}"):
            classes.choose(NAMES, None, None, outputs, "w.pth")
        with pytest.raises(UserError, match="1,000 class names given, but w.pth has"):
            classes.choose(None, None, "imagenet", outputs, "w.pth")


UNKNOWN = facts.Facts(None, None)


TORCHVISION = [name for name, known in ARCHITECTURES.items() if known.reference == "torchvision" and name != "tiny"]


def completed(known=UNKNOWN, stem="imagenet", channels=3, **given):
    with torch.device("meta"):
        module = torchvision.models.resnet18(num_classes=5)
        module.conv1 = torch.nn.Conv2d(channels, 64, 7)
    fitted = Fit("resnet18", stem, 5, None, {}, module, {}, [])  # type: ignore[arg-type]
    return facts.completed(known, fitted, given, "w.pth")


class TestPreprocessing:
    @pytest.mark.parametrize("arch", TORCHVISION)
    def test_it_equals_torchvisions_transforms(self, arch):
        for weights in torchvision.models.get_model_weights(arch):
            ours, theirs = facts.of_weights(arch, weights.name).preprocess, weights.transforms()
            assert [ours["resize"]] == theirs.resize_size
            assert [ours["size"]] == theirs.crop_size
            assert (ours["interpolation"], ours["fit"]) == (theirs.interpolation.value, "crop")
            assert (ours["mean"], ours["std"]) == (theirs.mean, theirs.std)

    def test_the_preprocessing_of_torchvisions_first_weights_is_assumed_with_a_notice(self):
        result = completed()
        assert result.preprocess == IMAGENET.preprocess
        assert result.notices == (
            "assuming the preprocessing of torchvision's IMAGENET1K_V1; if that is wrong, use --size, --mean, --std",
        )
        assert completed(facts.Facts(None, IMAGENET.preprocess)).notices == ()

    @pytest.mark.parametrize("form", [{"stem": "cifar3x3"}, {"channels": 1}])
    def test_networks_that_are_not_for_imagenet_have_unknown_preprocessing(self, form):
        result = completed(**form)
        assert result.preprocess is None
        assert (
            "its preprocessing is unknown; to predict with it, convert it with --size, --mean, --std"
            in result.notices[0]
        )
        with pytest.raises(UserError, match="w.pth needs --mean, --std too"):
            completed(**form, size=32)
        result = completed(**form, size=32, mean="0.5", std="0.2,0.3,0.25")
        values = {"size": 32, "resize": 32, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.3, 0.25]}
        assert (result.preprocess, result.notices) == ({"interpolation": "bilinear", "fit": "crop"} | values, ())

    def test_the_user_may_give_some_of_it(self):
        result = completed(mean="0.5", std="0.5")
        assert result.preprocess == IMAGENET.preprocess | {"mean": [0.5] * 3, "std": [0.5] * 3}
        assert result.notices[0].endswith("if that is wrong, use --size")

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"size": 0}, "--size 0 must be 1 or more"),
            ({"mean": "0.5,0.5"}, "--mean 0.5,0.5 must be one or three numbers"),
            ({"mean": "gray"}, "--mean gray must be one or three numbers"),
            ({"mean": "nan"}, "--mean nan must be one or three numbers"),
            ({"std": "0.5,0,0.5"}, "--std 0.5,0,0.5 must not be 0"),
        ],
    )
    def test_unusable_values_are_refused(self, given, message):
        with pytest.raises(UserError, match=message):
            completed(**given)


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A converted file with class names, from a checkpoint that records them."""
    folder = tmp_path_factory.mktemp("pets")
    labels = {name: label for label, name in reversed(list(enumerate(NAMES)))}
    torch.save({"model": checkpoints.trained(), "class_to_idx": labels}, folder / "pets.pth")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reference, "SIZES", (32,))
        resnet_to_flax.convert("resnet18", folder / "pets.pth", "", folder / "pets.safetensors", std="0.5")
    return folder / "pets.safetensors"


PREPROCESS = IMAGENET.preprocess | {"std": [0.5, 0.5, 0.5]}


def test_names_and_preprocessing_are_in_the_file_and_its_certificate(pets):
    weights, certificate = load_weights(pets), json.loads(pets.with_name("pets.safetensors.json").read_text())
    assert (weights.class_names, weights.stem) == (NAMES, "imagenet")
    assert json.loads(weights.metadata["preprocess"]) == PREPROCESS
    assert (certificate["class_names"], certificate["preprocess"]) == (list(NAMES), PREPROCESS)


def test_a_converted_file_predicts_with_its_names(pets):
    import sft_jax

    assert sft_jax.load(pets).class_names == NAMES


def test_names_and_preprocessing_survive_a_round_trip(pets, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "SIZES", (32,))
    flax_to_resnet.convert(None, pets, tmp_path / "torch.safetensors")
    with safetensors.safe_open(tmp_path / "torch.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert {key: metadata[key] for key in ("format", "arch", "stem")} == {
        "format": "pt",
        "arch": "resnet18",
        "stem": "imagenet",
    }
    assert json.loads(metadata["class_names"]) == list(NAMES)
    assert json.loads(metadata["preprocess"]) == PREPROCESS
    resnet_to_flax.convert("resnet18", tmp_path / "torch.safetensors", "", tmp_path / "w.safetensors")
    back = load_weights(tmp_path / "w.safetensors")
    assert (back.class_names, json.loads(back.metadata["preprocess"])) == (NAMES, PREPROCESS)


def test_names_and_preprocessing_are_in_the_metadata_of_onnx(pets):
    metadata = flax_to_onnx.metadata(trained.read(None, pets))
    assert metadata["arch"] == "resnet18"
    assert json.loads(metadata["class_names"]) == list(NAMES)
    assert json.loads(metadata["preprocess"]) == PREPROCESS
    assert (json.loads(metadata["mean"]), json.loads(metadata["std"])) == (PREPROCESS["mean"], PREPROCESS["std"])


@pytest.mark.parametrize(
    "content", [{"classes": {"a": [1]}}, {"classes": [1, 2]}, {"class_to_idx": {"a": 0, "b": 2}}, {"classes": []}, [1]]
)
def test_entries_called_classes_may_be_something_else(content):
    assert not unwrap.class_names_in(content)


@pytest.mark.parametrize("flag", [["--key", "model"], ["--classes", "a,b"], ["--dataset", "none"], ["--size", "224"]])
def test_flags_of_a_state_dict_are_refused_without_one(monkeypatch, flag):
    monkeypatch.setattr(sys, "argv", ["resnet_to_flax.py", *flag, "--output", "w.safetensors"])
    with pytest.raises(UserError, match=f"{flag[0]} requires --state-dict FILE"):
        resnet_to_flax.main()
