"""Tests of `python -m sft_jax.embed`: the features are those of the network, in the order of the files."""

import jax.numpy as jnp
import numpy as np
import pytest
from commands import called
from made_run import make_run
from PIL import Image
from text_runs import examples, register, run_on, tokenizer, write
from tiny_runs import one_device

import sft_jax
from sft_jax.embed.__main__ import main
from sft_jax.errors import UserError
from sft_jax.inference import predictor
from sft_jax.inference.network import BATCH
from sft_jax.models import packages
from sft_jax.models.weights import Weights, save_weights
from sft_jax.run.weights import load_run_weights
from sft_jax.training import trainer as train_module


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", data__source="folder:somewhere").folder


@pytest.fixture
def call(monkeypatch, capsys, tmp_path, run):
    def call(*words):
        return called(monkeypatch, capsys, main, "embed", "--workdir", run, *words)

    monkeypatch.chdir(tmp_path)
    return call


@pytest.fixture
def folder(tmp_path):
    """A folder of more than one batch of pictures of several sizes."""
    for number in range(BATCH + 3):
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (20 + number % 3, 24, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "pictures"


@pytest.mark.long
def test_features_are_what_the_head_gets(call, folder, run, tmp_path):
    code, printed, complaints = call("--data", f"folder:{folder}", "--output", "out.npz")
    assert (code, complaints) == (0, "")
    with np.load(tmp_path / "out.npz") as file:
        arrays = dict(file)
    files = sorted(folder.rglob("*.png"))
    assert arrays["files"].tolist() == [path.relative_to(folder).as_posix() for path in files]
    assert arrays["class_names"].tolist() == ["a", "b"]
    assert arrays["labels"].tolist() == [int(path.parent.name == "b") for path in files]
    assert arrays["labels"].dtype == np.int32
    assert arrays["features"].dtype == np.float32
    classifier = sft_jax.load(run)
    inputs = classifier.preprocess.on_device(jnp.stack([classifier.preprocess.read(path) for path in files]))
    expected = classifier.model.features(inputs, train=False).pooled
    np.testing.assert_allclose(arrays["features"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        classifier.model.head(arrays["features"]), classifier.logits(files), rtol=1e-3, atol=1e-4
    )
    channels = arrays["features"].shape[1]
    assert printed == f"wrote out.npz: {len(files)} images, {channels} features each\n"


def test_unreadable_files_are_named_and_left_out(call, folder, tmp_path):
    (folder / "a" / "000.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    code, _, complaints = call("--data", f"folder:{folder}", "--output", "out.npz")
    assert code == 2
    assert complaints == (
        "a/000.png cannot be read: not an image, or damaged\n"
        f"error: unreadable images: 1, see above; images written: {BATCH + 2}\n"
    )
    with np.load(tmp_path / "out.npz") as file:
        assert "a/000.png" not in file["files"]
        assert len(file["features"]) == len(file["labels"]) == len(file["files"]) == BATCH + 2


def test_one_split_of_the_digits(call, tmp_path):
    assert call("--data", "digits", "--split", "validation", "--output", "out.npz")[0] == 0
    with np.load(tmp_path / "out.npz") as file:
        assert file["files"][:2].tolist() == ["val[0]", "val[1]"]
        assert file["class_names"].tolist() == list("0123456789")


def test_wrong_output_is_one_line(call):
    assert call("--data", "digits", "--output", "out.csv") == (2, "", "error: --output out.csv must end in .npz\n")


def test_features_that_are_not_finite_are_refused(call, folder, monkeypatch):
    monkeypatch.setattr(
        predictor.Classifier, "square_features", lambda self, squares: np.full((len(squares), 4), np.nan, np.float32)
    )
    code, _, complaint = call("--data", f"folder:{folder}", "--output", "out.npz")
    assert (code, complaint) == (2, "error: the network's features are not finite; name other weights\n")


def test_exports_have_no_features(run):
    classifier = sft_jax.load(run)
    export = predictor.Classifier(classifier.program, classifier.preprocess, classifier.class_names)
    with pytest.raises(sft_jax.errors.UserError, match="an export gives logits but no features"):
        export.square_features([np.zeros((16, 16, 3), np.uint8)])


def test_weights_of_a_package_are_loaded_by_name(monkeypatch, run):
    weights = predictor.load_run_weights(run, "best")
    asked = []
    monkeypatch.setattr(packages, "load_packaged", lambda name: asked.append(name) or weights)
    classifier = sft_jax.load("package:some-weights")
    assert asked == ["package:some-weights"]
    assert classifier.class_names == sft_jax.load(run).class_names


@pytest.mark.long
def test_features_of_texts(call, tmp_path, monkeypatch, capsys):
    register(monkeypatch)
    folder = write(tmp_path / "texts")
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "Devices", one_device)
        run_on(folder, tmp_path / "made", epochs=1)
    words = ("--workdir", tmp_path / "made", "--data", f"text:{folder}", "--output", "t.npz")
    code, printed, complaints = call(*words, "--split", "validation", "--config.text.columns=sentence")
    assert code == 0
    assert printed.endswith("wrote t.npz: 61 texts, 24 features each\n")
    assert "texts from column 'sentence', labels from 'label'" in complaints
    with np.load(tmp_path / "t.npz") as file:
        arrays = dict(file)
    pairs = examples(61, 1)
    assert arrays["files"].tolist() == [f"dev.tsv:{number + 2}" for number in range(61)]
    assert arrays["class_names"].tolist() == ["negative", "positive"]
    assert arrays["labels"].tolist() == [int(label == "positive") for _, label in pairs]
    clf = sft_jax.load(tmp_path / "made")
    np.testing.assert_allclose(
        clf.model.head(arrays["features"]), clf.logits([text for text, _ in pairs]), rtol=1e-3, atol=1e-4
    )
    code, _, complaints = call("--data", "folder:somewhere", "--output", "t.npz", "--config.text.columns=sentence")
    assert code == 2
    assert complaints == "error: config.text.columns is for networks of texts, but this one takes images\n"
    code, _, complaints = call(*words[:2], "--data", "digits", "--output", "t.npz")
    assert "config.data.source=digits has images, but the task needs texts" in complaints
    # Pretrained weights often have no head.
    weights = load_run_weights(tmp_path / "made", "best")
    body = {name: array for name, array in weights.arrays.items() if not name.startswith("classifier.")}
    file = tmp_path / "body.safetensors"
    save_weights(file, Weights(body, weights.arch, None, {"tokenizer": tokenizer()}))
    again = ("embed", "--weights", file, *words[2:], "--split", "validation")
    assert called(monkeypatch, capsys, main, *again)[0] == 0
    with np.load(tmp_path / "t.npz") as found:
        np.testing.assert_allclose(found["features"], arrays["features"], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="body.safetensors have no head and therefore no classes; fine-tune them"):
        predictor.load(file, features_only=True).logits("good")
