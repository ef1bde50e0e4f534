"""Tests of tensorflow_datasets: with small datasets prepared here, real ones if available, and offline."""

import importlib.util
import os
import shutil
import socket
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from prepared_sets import VERSION, ImageSet, encoded, noise

from sft_jax.data.dataset import DECODING_THREADS, StreamedSplit
from sft_jax.data.images.reading import Reading
from sft_jax.data.images.square import Square
from sft_jax.data.sources import tfds as tfds_source
from sft_jax.data.sources.tfds import load_tfds
from sft_jax.errors import UserError

SPLITS = ("train[:45000]", "train[45000:]", "test")
REAL = os.environ.get("SFT_JAX_TEST_DATA")


def load(name, directory, splits=SPLITS, download=True, size=32, **settings):
    return load_tfds(name, directory=str(directory), download=download, splits=splits, size=size, **settings)


def message(name, directory, **settings):
    with pytest.raises(UserError) as caught:
        load(name, directory, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(images):
    """Returns the images as sorted bytes, because tfds shuffles the records."""
    return sorted(np.asarray(image).tobytes() for image in images)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    ImageSet(100, (32, 32, 3)).prepare("cifar100", directory, train=200, test=100)
    ImageSet(10, (28, 28, 1)).prepare("gray", directory, train=20, test=10)
    ImageSet(3, (None, None, 3)).prepare("many_sizes", directory, train=9, test=3, unlabelled=3)
    ImageSet(3, (20, 30, 3), draw=lambda number: noise(number, 20, 30)).prepare("oblong", directory, train=6, test=3)
    return directory


def test_a_dataset_of_a_hundred_classes(prepared):
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


def test_images_of_many_sizes_are_resized_to_one(prepared):
    dataset = load("many_sizes", prepared, ("train", "train", "test"), size=24)
    assert dataset.train.images.shape == (9, 24, 24, 3)
    np.testing.assert_array_equal(dataset.train.images[:, 3, 3, 0], dataset.train.labels)


def test_images_of_other_modes_become_rgb(tmp_path):
    """Gray, CMYK and palette images among RGB ones, as in ImageNet."""
    modes = ("L", "CMYK", "P", "RGB")
    ImageSet(2, (None, None, 3), draw=lambda number: noise(0, 9, 9).convert(modes[number])).prepare(
        "modes", tmp_path, train=4
    )
    dataset = load("modes", tmp_path, ("train", "train", "train"), size=9)
    files = (encoded(noise(0, 9, 9).convert(mode), "JPEG" if mode == "CMYK" else "PNG") for mode in modes)
    assert contents(dataset.train.images) == contents(Image.open(file).convert("RGB") for file in files)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_oblong_images_are_fitted_like_those_of_folders_with_a_notice(prepared, fit):
    """Regression: oblong images of one common size were squashed silently."""
    dataset = load("oblong", prepared, ("train", "train", "test"), size=16, reading=Reading(fit=fit))
    assert dataset.square == Square(16, fit)
    wanted = [Square(16, fit).of_image(noise(number, 20, 30)) for number in range(6)]
    assert contents(dataset.train.images) == contents(wanted)
    said = {
        "crop": "centre crop: 33% of the image area is cropped",
        "pad": "pad: 33%",
        "squash": "squash: aspect ratios",
    }
    (notice,) = dataset.notices
    assert notice.startswith(said[fit])


def test_each_record_is_resized_as_it_is_read(tmp_path):
    """Regression: all images were held at full size, 669 KiB per image, 48 GiB for food101."""
    side, count = 300, 64
    ImageSet(2, (None, None, 3), draw=lambda number: Image.new("RGB", (side, side + number), (number, 0, 0))).prepare(
        "large", tmp_path, train=count, test=2
    )
    tracemalloc.start()
    try:
        dataset = load("large", tmp_path, ("train", "test", "test"), size=16)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(np.sort(dataset.train.images[:, 8, 8, 0]), np.arange(count))
    assert dataset.train.images.shape == (count, 16, 16, 3)
    assert peak < DECODING_THREADS * side * (side + count) * 3 + 4e6 < 0.6 * count * side * side * 3


def test_images_that_do_not_fit_into_memory_are_streamed(prepared):
    names = ("train", "train[:3]", "test")
    wanted = load("many_sizes", prepared, names, size=24)
    streamed = load("many_sizes", prepared, names, size=24, reading=Reading(memory_bytes=1000))
    assert isinstance(streamed.train, StreamedSplit)
    assert streamed.notices == ("the images would need 0.0 GiB of memory: decoding them anew in each epoch",)
    assert streamed.square == wanted.square == Square(24)
    for one, other in zip(parts(streamed), parts(wanted), strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
        rows = np.arange(len(one))[None, ::-1]
        np.testing.assert_array_equal(next(one.batches(rows))["image"], next(other.batches(rows))["image"])
    # Square images of one common size are left unchanged.
    as_stored = load("cifar100", prepared, 3 * ("test",), size=16, reading=Reading(memory_bytes=0)).test
    batch = next(as_stored.batches(np.array([[7]])))
    images, labels = batch["image"], batch["label"]
    np.testing.assert_array_equal(images, np.full((1, 32, 32, 3), labels[0], np.uint8))


def parts(dataset):
    return dataset.train, dataset.validation, dataset.test


def test_features_may_have_other_names(tmp_path):
    """They are guessed with a notice if there is one of each kind, and must be named if there are more."""
    ImageSet(3, (8, 8, 3), keys=("photo", "species")).prepare("one", tmp_path, train=6)
    dataset = load("one", tmp_path, 3 * ("train",))
    assert dataset.notices == (
        "tfds:one: using feature 'photo' as the image",
        "tfds:one: using feature 'species' as the label",
    )
    np.testing.assert_array_equal(dataset.train.images[:, 0, 0, 0], dataset.train.labels)
    ImageSet(3, (8, 8, 3), keys=("left", "label", "right")).prepare("several", tmp_path, train=6)
    assert message("several", tmp_path, splits=3 * ("train",)) == (
        "tfds:several: cannot tell which feature is the image; name it with "
        "--config.data.image_key=left (available: left, right)"
    )
    assert load("several", tmp_path, 3 * ("train",), image_key="right").notices == ()
    assert message("several", tmp_path, splits=3 * ("train",), image_key="right", label_key="kind") == (
        "data.label_key=kind: tfds:several has no such label; name it with --config.data.label_key=label (available: "
        "label)"
    )


def test_splits_without_labels_are_refused(prepared):
    """Their labels are -1, although the files are not damaged."""
    assert message("many_sizes", prepared, splits=("train", "train", "unlabelled")) == (
        "data.test=unlabelled has no labels (all are -1); tfds:many_sizes has train (9), test (3), unlabelled (3): "
        "name one, or a slice such as 'train[90%:]', with --config.data.test=SPLIT"
    )


def test_the_folder_of_the_dataset_or_of_a_version_is_accepted(prepared, tmp_path):
    for name, folder in {"set": prepared / "cifar100", "version": prepared / "cifar100" / str(VERSION)}.items():
        dataset = load("cifar100", folder, 3 * ("test",))
        assert dataset.notices == (
            f"data.dir={folder} is the dataset's own folder; using {prepared}/cifar100/{VERSION}",
        ), name
        assert len(dataset.test) == 100
    said = message("cifar100", prepared / "gray", download=False)
    assert said.startswith(f"the dataset cifar100 is not prepared in {prepared}/gray and data.download is False")


def test_a_missing_version_is_refused(prepared):
    said = message("cifar100:9.9.9", prepared)
    assert said.startswith("tfds:cifar100:9.9.9 cannot be opened: ")
    assert said.endswith(f"; {prepared}/cifar100 has {VERSION}: use tfds:cifar100:{VERSION}")
    assert len(load(f"cifar100:{VERSION}", prepared, 3 * ("test",)).test) == 100


def test_missing_splits_are_refused(prepared):
    """The error names the key, the available splits and the flag to use."""
    there = "tfds:cifar100 has train (200), test (100): name one, or a slice such as 'train[90%:]', with --config.data."
    assert message("cifar100", prepared, splits=("train", "valid", "test")) == (
        "data.validation=valid cannot be used: Unknown split 'valid'. Should be one of ['train', 'test']; "
        f"{there}validation=SPLIT"
    )
    said = message("cifar100", prepared, splits=("train", "test", "train[:10"))
    assert said.startswith("data.test=train[:10 cannot be used: Error parsing split 'train[:10'.")
    assert said.endswith(f"{there}test=SPLIT")
    assert message("cifar100", prepared, splits=("train", "train[200:]", "test")) == (
        f"data.validation=train[200:] is empty; {there}validation=SPLIT"
    )


@pytest.mark.parametrize("kept", [0.5, 0])
def test_truncated_files_are_named(prepared, tmp_path, kept):
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


def test_an_unprepared_dataset_is_refused_offline(tmp_path, offline, monkeypatch):
    has = importlib.util.find_spec

    def with_tensorflow(name, *rest):
        return True if name == "tensorflow" else has(name, *rest)

    monkeypatch.setattr(tfds_source.importlib.util, "find_spec", with_tensorflow)
    start = time.monotonic()
    said = message("cifar10", tmp_path)
    assert time.monotonic() - start < 5
    assert said == (
        f"the dataset cifar10 is not prepared in {tmp_path} and www.cs.toronto.edu, which serves it, is unreachable; "
        "go online (preparing also needs pip install -e '.[prepare]'), or name the folder of a prepared copy with "
        "--config.data.dir=FOLDER"
    )


def test_an_unprepared_dataset_is_refused_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_source.importlib.util, "find_spec", lambda *_: None)
    assert message("cifar100", tmp_path) == (
        f"the dataset cifar100 is not prepared in {tmp_path} and preparing it needs TensorFlow: "
        "pip install -e '.[prepare]'; or name the folder of a prepared copy with --config.data.dir=FOLDER"
    )


def test_an_unprepared_dataset_is_refused_if_downloads_are_off(tmp_path):
    assert message("cifar10", tmp_path, download=False) == (
        f"the dataset cifar10 is not prepared in {tmp_path} and data.download is False; name the folder of a prepared "
        "copy with --config.data.dir=FOLDER"
    )


def test_a_name_lookup_that_hangs_times_out(monkeypatch):
    over = threading.Event()

    def hang(*_, **__):
        over.wait()
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "create_connection", hang)
    start = time.monotonic()
    assert not tfds_source.reachable("example.org")
    assert time.monotonic() - start < tfds_source.PROBE_SECONDS + 1
    over.set()


def test_an_unknown_dataset_is_refused(tmp_path, offline):
    unknown = "tensorflow_datasets has no dataset "
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
    # The published channel means of the training images: 0.4914, 0.4822, 0.4465.
    np.testing.assert_allclose(dataset.train.images.mean((0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=1e-3)
    assert "tensorflow" not in sys.modules
