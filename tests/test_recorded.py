"""Tests that evaluation, `sft_jax.load`, exports and reports use the preprocessing that a run has recorded."""

import base64
import dataclasses
import io
import json
import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
import torch
import torchvision
from image_folders import fill
from made_run import NAMES, make_run
from PIL import Image
from prepared_sets import ImageSet, noise
from tiny_runs import one_device
from tiny_runs import run as train_tiny

import sft_jax
from convert import families, keys
from sft_jax import data, evaluate
from sft_jax.config import complete
from sft_jax.data.images.square import Square
from sft_jax.data.preprocess import Preprocess
from sft_jax.models.weights import Weights, save_weights
from sft_jax.report.pictures import data_uris
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.training.experiment import Experiment
from sft_jax.training.start import earlier, read_dataset

REAL = os.environ.get("SFT_JAX_TEST_DATA")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns a run of one epoch on non-square 12-bit images, brighter in class "b", and its test images."""
    root = tmp_path_factory.mktemp("trained")
    for part, count in {"train": 8, "val": 4, "test": 6}.items():
        for label, name in enumerate(("a", "b")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                drawn = np.random.default_rng(100 * label + 10 * number + len(part))
                pixels = drawn.integers(0, 2000 * (1 + label), (20, 31), np.uint16)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    settings = {"limit_train_examples": None, "limit_eval_examples": None, "batch_size": 8, "epochs": 1}
    train_tiny(root / "run", data__source=f"folder:{root}", data__fit="pad", **settings)
    return Run(root / "run"), sorted((root / "test").rglob("*.png"))


def made(root, shape, draw):
    """Makes an untrained run on a dataset of tensorflow_datasets.

    Returns:
      the run, its metrics on the test split, the images of the split as tfds stores them, and their labels.
    """
    ImageSet(len(NAMES), shape, draw=draw).prepare("made", root, train=8, test=12)
    settings = {"data.source": "tfds:made", "data.dir": str(root), "batch_size": 8, "data.size": 16}
    settings |= {"data.train": "train", "data.validation": "train", "data.test": "test", "model.name": "tiny"}
    config = complete(settings)
    dataset = data.load_dataset(config.data, seed=0)
    preprocess = Preprocess.of_config(config.data, dataset.square)
    run = make_run(
        root / "run", preprocess=preprocess, **{"data.mean": config.data.mean, "data.std": config.data.std} | settings
    )
    experiment = Experiment(config, dataset, one_device())
    figures = experiment.test(*experiment.weights(run.restored("best").arrays))
    records = list(tfds.builder("made", data_dir=root).as_data_source(split="test"))
    return run, figures, [record["image"] for record in records], [record["label"] for record in records]


def loss(logits, labels):
    return float(-np.asarray(jax.nn.log_softmax(logits))[np.arange(len(labels)), labels].mean())


@pytest.mark.parametrize(
    ("shape", "draw", "square"),
    [
        ((None, None, 3), lambda row: noise(row, 14 + row, 34 - row), Square(16, decoding="fast")),
        ((18, 30, 3), lambda row: noise(row, 18, 30), Square(16, decoding="fast")),
        ((24, 24, 3), lambda row: noise(row, 24, 24), Square(16, keep_square=True, decoding="fast")),
    ],
    ids=["many sizes", "oblong", "square"],
)
def test_predictions_on_tfds_datasets_equal_evaluation(tmp_path, shape, draw, square):
    """Arrays and files are preprocessed as in evaluation, and give the same loss."""
    run, figures, images, labels = made(tmp_path, shape, draw)
    classifier = sft_jax.load(run.folder)
    assert classifier.preprocess.square == square
    assert loss(classifier.logits(images), labels) == pytest.approx(figures["test_loss"], rel=1e-4)
    paths = [tmp_path / f"{row}.png" for row in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    np.testing.assert_allclose(classifier.logits(paths), classifier.logits(images), atol=1e-4)


@pytest.mark.long
def test_predictions_on_a_folder_equal_evaluation(trained):
    """The loss of the predictions equals the run's test loss."""
    run, paths = trained
    labels = [int(path.parent.name == "b") for path in paths]
    classifier = sft_jax.load(run.folder)
    assert classifier.preprocess.square == Square(16, "pad", integers=(0, 4095), decoding="fast")
    assert loss(classifier.logits(paths), labels) == pytest.approx(run.results()["test_loss"], rel=1e-4)


@pytest.mark.long
def test_evaluation_uses_the_recorded_range(trained, monkeypatch, capsys):
    """Training images that have become brighter must not change the preprocessing of test images."""
    run, paths = trained
    for path in (paths[0].parents[2] / "train").rglob("0.png"):
        Image.fromarray(np.full((20, 31), 9000, np.uint16)).save(path)
    monkeypatch.setattr(sys, "argv", ["evaluate", "--workdir", str(run.folder), "--json"])
    evaluate.main()
    assert json.loads(capsys.readouterr().out)["test_loss"] == pytest.approx(run.results()["test_loss"], rel=1e-5)


@pytest.mark.long
def test_a_resumed_run_preprocesses_images_as_before(trained):
    """It uses the record; a run without one must not get a range of gray values when it is resumed."""
    run, _ = trained
    resumed = read_dataset(run.config(), Console(), before=earlier(run), resuming=True)
    assert resumed.square == Square(16, "pad", integers=(0, 4095), decoding="fast")
    first = dataclasses.replace(earlier(run), preprocess=None)
    assert read_dataset(run.config(), Console(), before=first, resuming=True).square == Square(16, "pad")


@pytest.mark.long
def test_the_report_shows_what_the_network_saw(trained):
    """Mistakes are shown as preprocessed images."""
    run, paths = trained
    assert "centre crop" not in run.log_file.read_text()
    assert "pad: 35% of the input is black padding on average" in run.log_file.read_text()
    preprocess = sft_jax.load(run.folder).preprocess
    dataset = data.load_dataset(run.config().data, seed=0, square=preprocess.square)
    uri = data_uris(dataset.test, [3])[3]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    np.testing.assert_array_equal(shown, preprocess.read(paths[3]))


def photos(folder):
    """Returns generated images and, if available, real ones."""
    generated = []
    for seed, (width, height) in enumerate([(400, 300), (256, 256), (260, 530), (224, 224), (180, 200)]):
        path = folder / f"{seed}.png"
        small = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path)
        generated.append(path)
    real = [] if REAL is None else sorted(Path(REAL, "bccd").rglob("*.jpg"))[:3]
    return generated + real


@pytest.mark.slow
def test_converted_weights_predict_as_their_torchvision_transforms(tmp_path):
    """With 224 px crops of 256 or 232 px: pixels agree within one grey level, logits within 1e-4."""
    torch.manual_seed(0)
    module = torchvision.models.resnet18().eval()
    first = tmp_path / "first.safetensors"
    arrays = keys.to_flax(module.state_dict(), families.flax_network("resnet18", 1000, "imagenet"))
    save_weights(first, Weights(arrays, "resnet18", None, {}))
    transforms = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms()
    facts = {"size": 224, "resize": 232, "interpolation": transforms.interpolation.value, "fit": "crop"}
    facts |= {"mean": transforms.mean, "std": transforms.std}
    save_weights(tmp_path / "v2.safetensors", Weights(arrays, "resnet18", None, {"preprocess": json.dumps(facts)}))
    paths = photos(tmp_path)
    for file, resize, theirs in [
        # Files without recorded preprocessing are of the first version.
        (first, 256, torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()),
        (tmp_path / "v2.safetensors", 232, transforms),
    ]:
        classifier = sft_jax.load(file)
        assert classifier.preprocess.resize == resize
        wanted = torch.stack([theirs(Image.open(path).convert("RGB")) for path in paths])
        squares = np.stack([classifier.preprocess.read(path) for path in paths])
        differences = np.asarray(classifier.preprocess.on_device(squares)) - wanted.numpy().transpose(0, 2, 3, 1)
        assert np.abs(differences * np.array(theirs.std) * 255).max() <= 1
        with torch.no_grad():
            logits = module(wanted).numpy()
        np.testing.assert_allclose(classifier.logits(paths), logits, atol=1e-4 * np.abs(logits).max())


def test_runs_of_earlier_versions_keep_their_preprocessing(tmp_path):
    """Their checkpoints do not record the preprocessing."""
    fill(tmp_path / "images", ["a"], 1)
    (path,) = (tmp_path / "images").rglob("*.png")
    for source, square in {"folder:x": Square(16), "tfds:x": Square(16, keep_square=True)}.items():
        classifier = sft_jax.load(make_run(tmp_path / source[:4], data__source=source).folder)
        assert classifier.preprocess.square == square
        assert classifier.predict(path)[0].shape == (1, 5)
        assert set(classifier.class_names) == set(NAMES)
