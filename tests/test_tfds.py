"""tensorflow_datasets: small sets that it prepares on the spot, real ones where they are, and being offline."""

import importlib.util
import io
import os
import shutil
import socket
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from sft_jax.data import tfds_source
from sft_jax.data.tfds_source import load_tfds
from sft_jax.errors import UserError

# So that tfds's own class for CIFAR-100 finds what is prepared here in its place.
VERSION = tfds.builder_cls("cifar100").VERSION
SPLITS = ("train[:45000]", "train[45000:]", "test")
REAL = os.environ.get("SFT_JAX_TEST_DATA")


def load(name, directory, splits=SPLITS, download=True, size=32):
    return load_tfds(name, directory=str(directory), download=download, splits=splits, size=size)


def message(name, directory, **settings):
    with pytest.raises(UserError) as caught:
        load(name, directory, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Pictures:
    """Pictures of class `label`, filled with the value that stands for it."""

    def __init__(self, classes, shape):
        self.classes, self.shape = classes, shape

    def prepare(self, name, directory, **counts):
        """Makes tfds write them as a set of this name. As PNG files: arrays it encodes with TensorFlow only."""
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=self.shape),
                "label": tfds.features.ClassLabel(num_classes=self.classes),
            }
        )

        def info(builder):
            return tfds.core.DatasetInfo(builder=builder, features=features)

        def splits(builder, _):
            return {split: self.examples(count) for split, count in counts.items()}

        members = {"VERSION": VERSION, "_info": info, "_split_generators": splits}
        members |= {"_generate_examples": lambda _: None, "name": name}
        with tfds.core.registered.skip_registration():
            builder = type(name.capitalize(), (tfds.core.GeneratorBasedBuilder,), members)
        builder(data_dir=directory, file_format="array_record").download_and_prepare()

    def examples(self, count):
        for number in range(count):
            label = number % self.classes
            height, width = (side or 8 + number for side in self.shape[:2])
            file = io.BytesIO()
            pixels = np.full((height, width, self.shape[2]), label, np.uint8)
            Image.fromarray(pixels if self.shape[2] == 3 else pixels[..., 0]).save(file, "PNG")
            file.seek(0)
            yield str(number), {"image": file, "label": label}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    Pictures(100, (32, 32, 3)).prepare("cifar100", directory, train=200, test=100)
    Pictures(10, (28, 28, 1)).prepare("gray", directory, train=20, test=10)
    Pictures(3, (None, None, 3)).prepare("many_sizes", directory, train=9, test=3)
    return directory


def test_a_set_of_a_hundred_classes(prepared):
    dataset = load("cifar100", prepared, ("train[:75%]", "train[75%:]", "test"))
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [150, 50, 100]
    assert len(dataset.class_names) == 100
    assert dataset.train.images.shape == (150, 32, 32, 3)
    for split in (dataset.train, dataset.validation, dataset.test):
        np.testing.assert_array_equal(split.images[:, 5, 7, 1], split.labels)
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), 100 * [1])
    assert "tensorflow" not in sys.modules


def test_gray_images_become_rgb(prepared):
    dataset = load("gray", prepared, ("train", "train", "test"))
    assert dataset.train.images.shape == (20, 28, 28, 3)
    assert set(dataset.train.labels) == set(range(10))


def test_images_of_many_sizes_are_brought_to_one(prepared):
    dataset = load("many_sizes", prepared, ("train", "train", "test"), size=24)
    assert dataset.train.images.shape == (9, 24, 24, 3)
    np.testing.assert_array_equal(dataset.train.images[:, 3, 3, 0], dataset.train.labels)


def test_splits_that_are_not_there(prepared):
    where = f"of tfds:cifar100 in {prepared}/cifar100/{VERSION} cannot be read: "
    assert message("cifar100", prepared, splits=("train", "valid", "test")) == (
        f"split 'valid' {where}Unknown split 'valid'. Should be one of ['train', 'test']."
    )
    assert message("cifar100", prepared, splits=("train", "train[:10", "test")).startswith(
        f"split 'train[:10' {where}Error parsing split 'train[:10'."
    )
    assert message("cifar100", prepared, splits=("train", "train[:0]", "test")) == (
        "split 'train[:0]' of tfds:cifar100 is empty"
    )


@pytest.mark.parametrize("kept", [0.5, 0])
def test_truncated_files(prepared, tmp_path, kept):
    shutil.copytree(prepared / "cifar100", tmp_path / "cifar100")
    (file,) = tmp_path.rglob("*test.array_record*")
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    said = message("cifar100", tmp_path, splits=("train[:10]", "train[10:20]", "test"))
    assert said.startswith(f"split 'test' of tfds:cifar100 in {tmp_path}/cifar100/{VERSION} ")
    assert "cannot be read" in said or "files are damaged" in said


@pytest.fixture
def offline(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)


def test_not_prepared_and_offline(tmp_path, offline, monkeypatch):
    has = importlib.util.find_spec

    def with_tensorflow(name, *rest):
        return True if name == "tensorflow" else has(name, *rest)

    monkeypatch.setattr(tfds_source.importlib.util, "find_spec", with_tensorflow)
    start = time.monotonic()
    said = message("cifar10", tmp_path)
    assert time.monotonic() - start < 5
    assert said == (
        f"the data set cifar10 is not prepared in {tmp_path} and www.cs.toronto.edu cannot be reached to download it; "
        "go online (preparing also needs pip install -e '.[prepare]'), or name the folder of a prepared copy with "
        "--config.data.dir=FOLDER"
    )


def test_not_prepared_and_no_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_source.importlib.util, "find_spec", lambda *_: None)
    assert message("cifar100", tmp_path) == (
        f"the data set cifar100 is not prepared in {tmp_path} and preparing it needs TensorFlow: "
        "pip install -e '.[prepare]'; or name the folder of a prepared copy with --config.data.dir=FOLDER"
    )


def test_not_prepared_and_not_to_be_downloaded(tmp_path):
    assert message("cifar10", tmp_path, download=False) == (
        f"the data set cifar10 is not prepared in {tmp_path} and data.download is off; name the folder of a prepared "
        "copy with --config.data.dir=FOLDER"
    )


def test_a_name_look_up_that_hangs_is_not_waited_for(monkeypatch):
    over = threading.Event()

    def hang(*_, **__):
        over.wait()
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "create_connection", hang)
    start = time.monotonic()
    assert not tfds_source.reachable("example.org")
    assert time.monotonic() - start < tfds_source.PROBE_SECONDS + 1
    over.set()


def test_an_unknown_set(tmp_path, offline):
    unknown = "tensorflow_datasets knows no data set "
    assert message("cifar_10", tmp_path) == unknown + "'cifar_10'; did you mean tfds:cifar10?"
    assert message("xyzxyzxyz", tmp_path) == unknown + "'xyzxyzxyz'"


@pytest.mark.skipif(REAL is None, reason="SFT_JAX_TEST_DATA names no folder with tfds/")
def test_real_cifar10():
    dataset = load("cifar10", f"{REAL}/tfds")
    assert dataset.class_names[:3] == ("airplane", "automobile", "bird")
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [45000, 5000, 10000]
    assert dataset.train.images.shape == (45000, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), 10 * [1000])
    both = np.concatenate([dataset.train.labels, dataset.validation.labels])
    np.testing.assert_array_equal(np.bincount(both), 10 * [5000])
    # What is published of the training images: channel means 0.4914, 0.4822, 0.4465.
    np.testing.assert_allclose(dataset.train.images.mean((0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=1e-3)
    assert "tensorflow" not in sys.modules
