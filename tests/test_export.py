"""Tests that exports give the logits of their source, or are not written."""

import json
import os
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from commands import called
from made_run import NAMES, make_run

import sft_jax
from convert import flax_to_onnx, flax_to_resnet, resnet_to_flax
from sft_jax import data
from sft_jax import export as export_module
from sft_jax.config import complete
from sft_jax.data.preprocess import Preprocess
from sft_jax.errors import UserError
from sft_jax.export import main
from sft_jax.inference.stablehlo import PLATFORMS
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.training.trainer import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    # At 32 px, all of the lowerings of conv2d are used.
    preprocess = Preprocess(32, "pad", integers=(0, 4095), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    return make_run(tmp_path_factory.mktemp("runs") / "run", preprocess=preprocess, data__size=32)


@pytest.fixture(scope="module")
def exported(run):
    path = run.folder / "classifier.stablehlo"
    difference, platform = export_module.export(run.folder, "best", path)
    assert 0 <= difference < 1e-5
    assert platform == "cpu"
    return path


def pixels(count, height=32, width=32):
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), np.uint8)


def call(monkeypatch, capsys, *words):
    """Runs the command; returns exit code, standard output and standard error."""
    return called(monkeypatch, capsys, main, "export", *words)


def test_an_export_gives_the_logits_of_its_source(run, exported):
    source, export = sft_jax.load(run.folder), sft_jax.load(exported)
    for count, height, width in [(1, 32, 32), (7, 32, 32), (40, 32, 32), (8, 50, 40)]:
        images = pixels(count, height, width)
        np.testing.assert_allclose(export.logits(images), source.logits(images), atol=1e-4)
    x_ray = np.random.default_rng(0).integers(0, 4096, (50, 40), np.uint16)
    np.testing.assert_allclose(export.logits(x_ray), source.logits(x_ray), atol=1e-4)
    np.testing.assert_allclose(export.logits(x_ray), export.logits((x_ray / 4095).astype(np.float32)), atol=0.05)
    assert export.class_names == source.class_names == NAMES
    assert export.preprocess == source.preprocess
    with pytest.raises(AttributeError, match="an export contains no NNX module"):
        _ = export.model


def test_an_export_runs_without_this_package(run, exported):
    program = jax.export.deserialize(bytearray(exported.read_bytes()))
    assert program.platforms == PLATFORMS == ("cpu", "cuda", "tpu")
    inputs = np.random.default_rng(0).standard_normal((8, 32, 32, 3), np.float32)
    np.testing.assert_allclose(program.call(inputs), sft_jax.load(run.folder).program(inputs), atol=1e-4)
    metadata = json.loads(zipfile.ZipFile(exported).read("metadata.json"))
    assert metadata["class_names"] == list(NAMES)
    assert metadata["licence"] == sft_jax.load(exported).licence == sft_jax.load(run.folder).licence == "CC-BY-NC-4.0"
    assert Preprocess.from_json(metadata["preprocess"]) == sft_jax.load(run.folder).preprocess
    facts = {"size": 32, "fit": "pad", "integers": [0, 4095], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
    assert metadata["preprocess"].items() >= facts.items()


def test_the_command_writes_and_verifies_an_export(run, tmp_path, monkeypatch, capsys):
    output = tmp_path / "new" / "classifier.jax"
    code, printed, complaints = call(monkeypatch, capsys, "--workdir", run.folder, "--output", output)
    assert (code, complaints) == (0, "")
    assert printed.startswith(f"wrote {output} (")
    assert "for cpu, cuda, tpu: verified on cpu with batch sizes 1, 3, 8, logits within " in printed
    assert [path.name for path in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize("factor", [1.001, np.nan])
def test_a_program_that_differs_is_not_written(run, tmp_path, monkeypatch, capsys, factor):
    def distorted(path):
        classifier = load_export(path)
        program = classifier.program
        classifier.program = lambda inputs: program(inputs) * np.float32(factor)
        return classifier

    from sft_jax.inference import predictor as classifier_module

    load_export = classifier_module.load_export
    monkeypatch.setattr(classifier_module, "load_export", distorted)
    output = tmp_path / "out" / "classifier.stablehlo"
    code, printed, complaints = call(monkeypatch, capsys, "--workdir", run.folder, "--output", output)
    assert (code, printed) == (2, "")
    assert complaints.startswith("error: the exported program's logits differ from those of ")
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("jax"), OSError("No space left on device")])
def test_an_interrupted_export_keeps_the_old_file(run, tmp_path, monkeypatch, error):
    def interrupted(_):
        raise error

    monkeypatch.setattr("sft_jax.inference.predictor.load_export", interrupted)
    output = tmp_path / "classifier.stablehlo"
    output.write_bytes(b"before")
    with pytest.raises(UserError if isinstance(error, OSError) else type(error)) as caught:
        export_module.export(run.folder, "best", output)
    if isinstance(error, OSError):
        assert str(caught.value) == f"{output} cannot be written: No space left on device"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {output.name: b"before"}


@pytest.mark.parametrize("place", [1000, -200, -20])
def test_a_damaged_file_is_refused(exported, tmp_path, place):
    content = bytearray(exported.read_bytes())
    content[place] ^= 0xFF
    damaged = tmp_path / "d.stablehlo"
    damaged.write_bytes(content)
    with pytest.raises(UserError, match=f"{damaged} is .*damaged") as caught:
        sft_jax.load(damaged)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello, world"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "d.jax").write_bytes(content)
    with pytest.raises(UserError, match=r"d\.jax is not an export of sft-jax, or damaged"):
        sft_jax.load(tmp_path / "d.jax")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.onnx", "a.onnx: to write a .onnx file, use python convert/flax_to_onnx.py"),
        ("a.pth", "a.pth: to write a .pth file, use python convert/flax_to_resnet.py"),
        ("a.txt", "a.txt must end in .stablehlo or .jax"),
    ],
)
def test_other_formats_name_their_commands(run, monkeypatch, capsys, name, message):
    code, _, complaints = call(monkeypatch, capsys, "--workdir", run.folder, "--output", name)
    assert (code, complaints) == (2, f"error: --output {message}\n")


def test_help_lists_flags_and_an_example(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, capsys, "--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for words in ("--workdir RUN", "--output FILE", "jax.export.deserialize(", "python -m sft_jax.export --workdir"):
        assert words in text


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("onnx") / "run", model__name="resnet18", data__size=32)


class TestOnnx:
    def test_it_gives_the_logits_of_the_run(self, resnet18, tmp_path, capsys):
        output = tmp_path / "new" / "r.onnx"
        flax_to_onnx.convert(resnet18.folder, None, output)
        printed = capsys.readouterr().out
        assert f"wrote {output}: resnet18, 6 outputs; inputs images float32 [batch, 3, 32, 32]; checked" in printed
        assert [path.name for path in output.parent.iterdir()] == [output.name]
        session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
        images = pixels(5)
        inputs = (images.astype(np.float32) / 255 - np.float32([0.4, 0.5, 0.6])) / np.float32([0.2, 0.3, 0.25])
        (logits,) = session.run(["logits"], {"images": np.ascontiguousarray(inputs.transpose(0, 3, 1, 2))})
        wanted = sft_jax.load(resnet18.folder).logits(images)
        assert np.abs(logits - wanted).max() < 1e-4 * np.abs(wanted).max()
        facts = session.get_modelmeta().custom_metadata_map
        assert json.loads(facts["class_names"]) == list(NAMES)
        assert facts["licence"] == "CC-BY-NC-4.0"
        assert (json.loads(facts["mean"]), json.loads(facts["std"])) == ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])

    @pytest.mark.long
    def test_a_network_that_differs_is_not_written(self, resnet18, tmp_path, monkeypatch):
        from convert import parity

        activations = parity.flax_activations
        monkeypatch.setattr(parity, "flax_activations", lambda *given: ({}, activations(*given)[1] * np.float32(1.001)))
        with pytest.raises(UserError, match="the ONNX network differs: a logit is off by .*; nothing was written"):
            flax_to_onnx.convert(resnet18.folder, None, tmp_path / "r.onnx")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.long
    def test_an_interruption_keeps_the_old_file(self, resnet18, tmp_path, monkeypatch):
        def ended(*_):
            raise RuntimeError("onnxruntime")

        monkeypatch.setattr(flax_to_onnx, "largest_difference", ended)
        output = tmp_path / "r.onnx"
        output.write_bytes(b"before")
        with pytest.raises(RuntimeError, match="onnxruntime"):
            flax_to_onnx.convert(resnet18.folder, None, output)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {output.name: b"before"}

    def test_wrong_usage_is_refused(self, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["flax_to_onnx.py", "--workdir", "x", "--output", "r.pth"])
        with pytest.raises(UserError, match=r"--output r.pth must end in .onnx"):
            flax_to_onnx.main()


@pytest.mark.slow
@pytest.mark.skipif(
    "SFT_JAX_TEST_DATA" not in os.environ, reason="SFT_JAX_TEST_DATA names no folder with weights/, tfds/"
)
def test_ten_thousand_predictions_are_the_same_everywhere(tmp_path):
    """Compares a fine-tuned run in PyTorch, jax.export and onnxruntime; logits may tie up to rounding."""
    real = Path(os.environ["SFT_JAX_TEST_DATA"])
    source, weights = real / "weights" / "resnet18-imagenet-stage123.pth", tmp_path / "weights.safetensors"
    resnet_to_flax.convert("resnet18", source, "", weights)
    settings = {"init": str(weights), "data.dir": str(real / "tfds"), "epochs": 1, "batch_size": 80}
    config = complete(settings | {"limit_train_examples": 4000})
    train(config, Run(tmp_path / "run"), resume=False, console=Console(), command=["test"])
    outputs = [tmp_path / f"r.{suffix}" for suffix in ("pth", "stablehlo", "onnx")]
    flax_to_resnet.convert(tmp_path / "run", None, outputs[0])
    export_module.export(tmp_path / "run", "best", outputs[1])
    flax_to_onnx.convert(tmp_path / "run", None, outputs[2])

    images = data.load_dataset(config.data, seed=0).test.images
    wanted = sft_jax.load(tmp_path / "run").logits(images)
    inputs = ((images / np.float32(255) - np.float32(0.5)) / np.float32(0.5)).transpose(0, 3, 1, 2)
    blocks = [np.ascontiguousarray(inputs[first : first + 500]) for first in range(0, len(inputs), 500)]
    module = torchvision.models.resnet18(num_classes=10)
    module.load_state_dict(torch.load(outputs[0]))
    session = onnxruntime.InferenceSession(str(outputs[2]), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        by_program = {
            "PyTorch": np.concatenate([module.eval()(torch.from_numpy(block)).numpy() for block in blocks]),
            "jax.export": sft_jax.load(outputs[1]).logits(images),
            "onnxruntime": np.concatenate([session.run(None, {"images": block})[0] for block in blocks]),
        }
    second, first = np.sort(wanted, axis=-1)[:, -2:].T
    clear = first - second > 1e-3
    assert clear.sum() > 9900
    for name, logits in by_program.items():
        assert len(logits) == 10_000
        np.testing.assert_array_equal(logits.argmax(-1)[clear], wanted.argmax(-1)[clear], err_msg=name)
