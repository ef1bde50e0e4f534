"""Tests of the splits that are drawn if a source has none: they depend on file names only."""

import unicodedata

import numpy as np
import pytest
from image_folders import SIZE, fill, message

from sft_jax.data.sources.folder import list_folder, load_folder
from sft_jax.data.sources.listing import LabelledFile, Listing
from sft_jax.data.sources.part_names import part_of
from sft_jax.data.sources.parts import decided, position
from sft_jax.errors import UserError


def listing(counts, part=None, root="flowers"):
    """Returns a listing with `counts` files of each class."""
    files = [
        LabelledFile(f"{name}/{number:03}.jpg", f"{name}/{number:03}.jpg", name, part)
        for name, count in counts.items()
        for number in range(count)
    ]
    return Listing(root, root, tuple(counts), files)


def part_by_name(parts):
    return {file.name: part for part, files in parts.items() for file in files}


@pytest.mark.parametrize(
    ("names", "part"),
    [
        ("train Train TRAINING training_set train-set trainset TrainSet seg_train train2017 train_images", "train"),
        ("val valid Validation dev eval evaluation VAL val_set validation-data dev_set", "val"),
        ("test Testing TEST tests test_set testset seg_test test-images", "test"),
        ("rose train_a trains attest contest devil value values testament training_shoes 2017 set images ö", None),
    ],
)
def test_common_names_of_splits_are_recognised(names, part):
    assert {name: part_of(name) for name in names.split()} == dict.fromkeys(names.split(), part)


def test_the_draw_is_the_same_on_every_machine_and_in_every_version():
    """Otherwise a run could later be evaluated on images that it was trained on."""
    assert position("rose/001.jpg") == pytest.approx(0x42BA2551C985 / 2**48)  # sha256sum
    assert position(unicodedata.normalize("NFD", "dög/é.jpg")) == position(unicodedata.normalize("NFC", "dög/é.jpg"))
    drawn = decided(listing({"rose": 2000, "tulip": 2000}), [])
    counts = {part: len(files) for part, files in drawn.items()}
    assert counts == pytest.approx({"train": 3200, "val": 400, "test": 400}, rel=0.15)


def test_adding_images_moves_no_other():
    before = part_by_name(decided(listing({"rose": 200, "tulip": 200}), []))
    after = part_by_name(decided(listing({"iris": 50, "rose": 260, "tulip": 200}), []))
    assert {name: after[name] for name in before} == before


def test_a_given_split_moves_no_image_of_another():
    """A given test split does not change which images are drawn for validation."""
    whole = part_by_name(decided(listing({"rose": 200, "tulip": 200}), []))
    for given_part, drawn in (("test", "val"), ("val", "test")):
        files = listing({"rose": 200, "tulip": 200})
        own = [file._replace(name=f"own/{file.name}", part=given_part) for file in files.files[:1]]
        splits = decided(Listing(files.root, files.place, files.class_names, files.files + own), [])
        assert {file.name for file in splits[drawn]} == {name for name, part in whole.items() if part == drawn}


@pytest.mark.parametrize("missing", [1, 2])
@pytest.mark.parametrize("counts", [(1,), (2, 1), (3, 3, 3), (1, 2, 3, 4, 5, 6, 7, 8), tuple(range(3, 40))])
def test_every_class_with_enough_images_is_in_every_split(counts, missing):
    files = listing({f"class {number}": count for number, count in enumerate(counts)})
    if missing == 1:
        own = [file._replace(name=f"test/{file.name}", part="test") for file in files.files]
        files = Listing(files.root, files.place, files.class_names, files.files + own)
    try:
        splits = decided(files, [])
    except UserError:
        assert max(counts) <= missing
        return
    assert sorted(part_by_name(splits)) == sorted(file.name for file in files.files), "each image is in one split"
    drawn = ["train", "val", "test"][: missing + 1]
    for name, count in zip(files.class_names, counts, strict=True):
        here = [part for part in drawn if any(file.label == name for file in splits[part])]
        assert here == (drawn if count > missing else ["train"])


def test_a_small_class_is_used_for_training_with_a_notice(tmp_path):
    fill(tmp_path, ["a", "b", "c"], 10)
    fill(tmp_path, ["rare"], 1, start=5000)
    dataset = load_folder(tmp_path, SIZE)
    assert np.bincount(dataset.train.labels)[3] == 1
    assert dataset.notices[1:] == ("the val split has no images of 'rare'", "the test split has no images of 'rare'")


def test_too_few_images_to_draw_from_are_refused(tmp_path):
    fill(tmp_path, ["a", "b"], 2)
    assert message(tmp_path) == f"{tmp_path} has too few images to draw a val split from; add images or that split"


def test_the_seed_does_not_change_the_splits(tmp_path):
    """Runs with different seeds are evaluated on the same images."""
    from sft_jax.config import complete
    from sft_jax.data import load_dataset

    fill(tmp_path, ["a", "b"], 30)
    config = complete({"data.source": f"folder:{tmp_path}", "data.size": SIZE, "data.per_class": 5})
    one, other = (load_dataset(config.data, seed=seed) for seed in (0, 1))
    assert one.test.names == other.test.names
    assert one.validation.names == other.validation.names
    assert one.train.names != other.train.names, "few-shot draws follow the seed"


def test_splits_do_not_depend_on_where_the_folder_is(tmp_path):
    fill(tmp_path / "here", ["a", "b"], 30)
    fill(tmp_path / "there" / "train", ["a", "b"], 30)
    here, there = (decided(list_folder(tmp_path / name, []), []) for name in ("here", "there"))
    assert {part: [file.key for file in files] for part, files in here.items()} == {
        part: [file.key for file in files] for part, files in there.items()
    }
