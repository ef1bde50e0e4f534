"""Tests of decoded images on disk: decoded once, verified, bounded, continued, and the same as without them."""

import os

import numpy as np
import pytest
from image_folders import SIZE, fill, noise_image
from tiny_runs import assert_same_run, run

from sft_jax.data.dataset import ArraySplit, StreamedSplit
from sft_jax.data.images import stored
from sft_jax.data.images.reading import Reading
from sft_jax.data.images.square import Square
from sft_jax.data.sources.folder import load_folder
from sft_jax.errors import UserError

COUNT = 60


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def images(tmp_path):
    fill(tmp_path / "images", ("ant", "bee"), COUNT // 2)
    return tmp_path / "images"


@pytest.fixture
def read(monkeypatch):
    """Returns the names of the files that were decoded so far."""
    names, whole = [], Square.read

    def note(self, path, *settings):
        names.append(path.name)
        return whole(self, path, *settings)

    monkeypatch.setattr(Square, "read", note)
    return names


def load(folder, **settings):
    return load_folder(folder, SIZE, reading=Reading(**settings))


def assert_right(dataset, folder):
    assert sum(map(len, (dataset.train, dataset.validation, dataset.test))) == COUNT
    for split in (dataset.train, dataset.validation, dataset.test):
        batch = next(split.batches(np.arange(len(split))[None]))
        for name, image, label in zip(split.names, batch["image"], split.labels, strict=True):
            np.testing.assert_array_equal(image, Square(SIZE).read(folder / name))
            assert name.startswith(dataset.class_names[label])


def test_files_are_decoded_once(images, cache, read, tmp_path):
    first = load(images)
    assert isinstance(first.train, ArraySplit)
    assert len(read) == COUNT
    assert_right(first, images)
    read.clear()
    again = load(images)
    assert not read
    assert_right(again, images)
    moved = images.rename(tmp_path / "moved")
    read.clear()
    load(moved)
    assert not read
    noise_image(999).save(moved / "ant" / "000.png")
    assert_right(load(moved), moved)


def test_what_does_not_fit_into_memory_is_read_from_disk(images, cache, read):
    dataset = load(images, memory_bytes=0)
    assert isinstance(dataset.train, StreamedSplit)
    assert dataset.notices[-1].startswith("the images would need 0.0 GiB of memory: decoded once, into ")
    assert len(read) == COUNT
    order = np.arange(len(dataset.train))[None]
    expected = next(dataset.train.batches(order))["image"]
    assert len(read) == COUNT
    assert_right(dataset, images)
    # A damaged image is decoded again.
    (file,) = cache.glob("*.pixels")
    content = bytearray(file.read_bytes())
    content[:: SIZE * SIZE * 3] = bytes(byte ^ 1 for byte in content[:: SIZE * SIZE * 3])
    file.write_bytes(content)
    read.clear()
    np.testing.assert_array_equal(next(dataset.train.batches(order))["image"], expected)
    assert len(read) == len(dataset.train)


@pytest.mark.parametrize("damage", ["a bit", "truncated", "no rows", "other rows"])
def test_damaged_images_are_decoded_again(images, cache, read, damage):
    load(images)
    (file,), (rows,) = cache.glob("*.pixels"), cache.glob("*.rows.npy")
    content = bytearray(file.read_bytes())
    if damage == "a bit":
        content[5 * SIZE * SIZE * 3] ^= 1
        file.write_bytes(content)
    elif damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "no rows":
        rows.unlink()
    else:
        rows.write_bytes(b"\x93NUMPY")
    read.clear()
    dataset = load(images)
    assert len(read) == {"a bit": 1, "truncated": COUNT // 2}.get(damage, COUNT)
    assert_right(dataset, images)


def test_decoding_continues_where_it_was_interrupted(images, cache, read, monkeypatch):
    monkeypatch.setattr("sft_jax.data.images.decoding.SUBMITTED", 20)
    whole = Square.read

    def interrupted(self, *arguments):
        if len(read) == 30:
            raise KeyboardInterrupt
        return whole(self, *arguments)

    monkeypatch.setattr(Square, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(images)
    monkeypatch.setattr(Square, "read", whole)
    before = len(read)
    assert 20 <= before < COUNT
    assert_right(load(images), images)
    decoded = len(read) - COUNT - before  # less those of the comparison
    assert decoded <= COUNT - 20


def test_unreadable_files_are_skipped_or_end_the_run(images, cache):
    path = images / "ant" / "003.png"
    path.write_bytes(path.read_bytes()[:120])
    with pytest.raises(UserError, match="1 image cannot be read"):
        load(images)
    dataset = load(images, on_error="skip")
    assert sum(map(len, (dataset.train, dataset.validation, dataset.test))) == COUNT - 1
    for split in (dataset.train, dataset.validation, dataset.test):
        for name, image in zip(split.names, split.images, strict=True):
            np.testing.assert_array_equal(image, Square(SIZE).read(images / name))


@pytest.mark.parametrize("memory_bytes", [None, 0])
def test_a_full_disk_changes_nothing(images, cache, memory_bytes, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stored.np, "save", fail)
    assert_right(load(images, memory_bytes=memory_bytes), images)
    monkeypatch.setattr(stored, "DISK_FRACTION", 0.0)
    assert_right(load(images, memory_bytes=memory_bytes), images)
    assert not list(cache.glob("*.rows.npy"))


def test_the_least_recently_used_are_deleted(tmp_path, cache, monkeypatch, read):
    size = COUNT * SIZE * SIZE * 3
    monkeypatch.setattr(stored, "TOTAL_BYTES", 2 * size)
    folders = [tmp_path / name for name in "abc"]
    for number, folder in enumerate(folders):
        fill(folder, ("ant", "bee"), COUNT // 2, start=5000 * number)
    for folder in folders[:2]:
        load(folder)
    for path, age in zip(sorted(cache.glob("*.rows.npy"), key=os.path.getmtime), (20, 10), strict=True):
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    load(folders[0])  # used again
    load(folders[2])
    assert sum(path.stat().st_size for path in cache.glob("*.pixels")) == 2 * size
    read.clear()
    load(folders[0])
    assert not read
    load(folders[1])
    assert len(read) == COUNT


@pytest.mark.slow
def test_runs_are_the_same_with_and_without(images, cache, tmp_path, monkeypatch):
    settings = {"data__source": f"folder:{images}", "batch_size": 16, "limit_train_examples": None}
    run(tmp_path / "kept", **settings)
    run(tmp_path / "again", **settings)
    monkeypatch.setenv("SFT_JAX_CACHE", "0")
    run(tmp_path / "plain", **settings)
    for other in ("again", "plain"):
        assert_same_run(tmp_path / "kept", tmp_path / other)
