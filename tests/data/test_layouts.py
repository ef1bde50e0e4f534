"""Tests of real-world folder layouts: detection of splits, notices, and errors."""

import numpy as np
import pytest
from image_folders import SIZE, fill, message

from sft_jax.data.sources.folder import list_folder, load_folder

CLASSES = ("ant", "bee", "cat")


def make_splits(root, *names, count=4, classes=CLASSES):
    """Creates folders of splits, all images distinct."""
    for index, name in enumerate(names):
        fill(root / name, classes, count, start=10_000 * index)


def flat(folder, count=5):
    """Creates a folder of unlabelled images."""
    fill(folder.parent, [folder.name], count, start=77_000)


def counts(dataset):
    return [len(split) for split in (dataset.train, dataset.validation, dataset.test)]


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "val", "test"),
        ("train", "validation", "test"),
        ("train", "valid", "test"),  # Roboflow, fastai
        ("Training", "Validation", "Testing"),  # Kaggle
        ("Train", "Val", "Test"),
        ("TRAIN", "DEV", "TEST"),
        ("train", "eval", "test"),
        ("training_set", "evaluation", "test_set"),
        ("seg_train", "val", "seg_test"),
    ],
)
def test_splits_are_recognised_by_their_usual_names(tmp_path, train, validation, test):
    for index, name in enumerate((train, validation, test)):
        fill(tmp_path / name, CLASSES, 4 - index, start=10_000 * index)
    dataset = load_folder(tmp_path, SIZE)
    assert counts(dataset) == [12, 9, 6]
    assert dataset.class_names == CLASSES
    for split, name in ((dataset.train, train), (dataset.validation, validation), (dataset.test, test)):
        assert {file.split("/")[0] for file in split.names} == {name}
    usual = {train.lower(), validation.lower(), test.lower()} <= {"train", "val", "validation", "test"}
    assert len(dataset.notices) == (not usual)
    if not usual:
        assert dataset.notices[0].startswith("folders used as splits: ")
        assert f"{validation} (val)" in dataset.notices[0] or validation.lower() in ("val", "validation")


@pytest.mark.parametrize(
    ("present", "drawn"), [(("Training", "Testing"), "val"), (("train", "valid"), "test"), (("train",), "val or test")]
)
def test_missing_splits_are_drawn_from_training_with_a_notice(tmp_path, present, drawn):
    make_splits(tmp_path, *present, count=12)
    dataset = load_folder(tmp_path, SIZE)
    assert sum(counts(dataset)) == 36 * len(present)
    assert any(line.startswith(f"no {drawn} split: using about 10%") for line in dataset.notices)


def test_two_folders_for_one_split_are_refused(tmp_path):
    make_splits(tmp_path, "train", "val", "valid")
    assert message(tmp_path) == (
        f"{tmp_path / 'val'} and {tmp_path / 'valid'} both look like the val split; keep one, or merge them"
    )


def test_an_empty_second_folder_of_a_split_is_ignored(tmp_path):
    make_splits(tmp_path, "train", "val", "test")
    (tmp_path / "valid").mkdir()
    dataset = load_folder(tmp_path, SIZE)
    assert counts(dataset) == [12, 12, 12]
    assert dataset.notices[0] == f"{tmp_path / 'valid'} ignored: it contains no images"


@pytest.mark.parametrize("name", ["holdout", "chest_xray", "seg_pred", "extra"])
def test_an_unknown_folder_beside_train_is_named(tmp_path, name):
    make_splits(tmp_path, "train", "test")
    flat(tmp_path / name)
    assert message(tmp_path).startswith(
        f"{tmp_path / name}, next to the train folder, contains images but is not named like a split; rename it to "
    )


def test_a_folder_without_images_beside_train_is_ignored(tmp_path):
    make_splits(tmp_path, "train", "val", "test")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "all.json").write_text("{}")
    assert load_folder(tmp_path, SIZE).notices == ()


def test_an_unlabelled_test_split_is_not_scored(tmp_path):
    """As on Kaggle: the test split is drawn from the training images instead, with a notice."""
    make_splits(tmp_path, "train", count=12)
    flat(tmp_path / "test")
    dataset = load_folder(tmp_path, SIZE)
    assert sum(counts(dataset)) == 36
    assert dataset.notices[0] == (f"{tmp_path / 'test'} ignored: it has 5 images but no class folders, hence no labels")
    assert dataset.notices[1].startswith("no val or test split: ")


def test_a_split_may_be_nested_in_a_folder_of_its_name(tmp_path):
    """As in Kaggle archives: seg_train/seg_train/CLASS."""
    for index, name in enumerate(("seg_train", "seg_test")):
        fill(tmp_path / name / name, CLASSES, 12, start=10_000 * index)
    dataset = load_folder(tmp_path, SIZE)
    assert dataset.class_names == CLASSES
    assert len(dataset.test) == 36


def test_the_folder_of_an_archive_is_suggested(tmp_path):
    fill(tmp_path / "flower_photos", CLASSES, 4)
    assert message(tmp_path).endswith(
        f"found only 'flower_photos', which contains ant, bee, cat: if these are the classes, use "
        f"--config.data.source=folder:{tmp_path / 'flower_photos'}"
    )


@pytest.mark.parametrize("empty", [False, True])
def test_a_split_may_lack_a_class(tmp_path, empty):
    make_splits(tmp_path, "train", "test")
    fill(tmp_path / "val", CLASSES[:2], 4, start=5000)
    if empty:
        (tmp_path / "val" / "cat").mkdir()
    dataset = load_folder(tmp_path, SIZE)
    assert counts(dataset) == [12, 8, 12]
    np.testing.assert_array_equal(dataset.validation.labels, np.repeat([0, 1], 4))
    assert dataset.notices == ("the val split has no images of 'cat'",)


def test_an_unknown_class_of_a_split_is_refused(tmp_path):
    make_splits(tmp_path, "train")
    fill(tmp_path / "val", (*CLASSES, "dog"), 4)
    assert message(tmp_path).startswith(f"{tmp_path / 'val'} has classes that are not in the training split: 'dog';")


def test_classes_that_differ_in_case_are_named(tmp_path):
    make_splits(tmp_path, "train")
    fill(tmp_path / "val", ("Ant", "bee"), 4)
    assert "'Ant' (names are case-sensitive: 'Ant' is 'ant' there); rename" in message(tmp_path)
    fill(tmp_path / "both", ("Ant", "ant"), 10)
    assert load_folder(tmp_path / "both", SIZE).notices[0] == (
        "classes 'Ant' and 'ant' differ only in case; treated as two classes"
    )


def test_an_empty_training_class_is_named(tmp_path):
    make_splits(tmp_path, "train", "val", "test")
    (tmp_path / "train" / "dog").mkdir()
    assert message(tmp_path).startswith(f"{tmp_path / 'train' / 'dog'} contains no images; add some, or remove")


def test_images_outside_class_folders_are_reported(tmp_path):
    make_splits(tmp_path, "train", "val", "test")
    for name in ("a.png", "b.png"):
        (tmp_path / "train" / name).write_bytes((tmp_path / "train" / "ant" / "000.png").read_bytes())
    assert load_folder(tmp_path, SIZE).notices[0] == (
        f"2 images directly in {tmp_path / 'train'} ignored: not in a class folder"
    )


@pytest.mark.parametrize(("classes", "odd"), [(("bus", "car"), "train"), (("control",), "test")])
def test_a_class_may_be_named_like_a_split(tmp_path, classes, odd):
    """A train is a vehicle: if nothing else makes sense, the folder is a class."""
    fill(tmp_path, (*classes, odd), 12)
    dataset = load_folder(tmp_path, SIZE)
    assert dataset.class_names == tuple(sorted((*classes, odd)))
    assert dataset.notices[0] == (
        f"{tmp_path / odd} contains images but no class folders: used as a class, not as the {odd} split"
    )


def test_a_folder_that_may_be_a_class_or_unlabelled_images_is_refused(tmp_path):
    fill(tmp_path, ("ant", "bee", "test"), 12)
    assert message(tmp_path) == (
        f"{tmp_path / 'test'} may be a class or unlabelled images; move the class folders into "
        f"{tmp_path / 'train'}, and test too if it is a class, otherwise elsewhere"
    )


def test_a_split_may_lie_beside_the_classes(tmp_path):
    """ROOT/CLASS and ROOT/test/CLASS."""
    fill(tmp_path, CLASSES, 12)
    fill(tmp_path / "Test", CLASSES, 4, start=500)
    dataset = load_folder(tmp_path, SIZE)
    assert (len(dataset.train) + len(dataset.validation), len(dataset.test)) == (36, 12)


def test_flat_folders_suggest_a_table(tmp_path):
    flat(tmp_path / "train")
    flat(tmp_path / "test")
    (tmp_path / "train.csv").write_text("id,label\n")
    assert message(tmp_path).endswith(
        f"found none; if train.csv has the labels, use --config.data.source=csv:{tmp_path / 'train.csv'}"
    )


def test_system_folders_are_ignored(tmp_path):
    make_splits(tmp_path, "train", "val", "test")
    for junk in ("__MACOSX", "@eaDir", ".ipynb_checkpoints"):
        for folder in (tmp_path, tmp_path / "train", tmp_path / "train" / "ant"):
            fill(folder / junk, ["ant"], 2)
    dataset = load_folder(tmp_path, SIZE)
    assert counts(dataset) == [12, 12, 12]
    assert dataset.notices == ()


def test_the_same_file_in_training_and_test_is_refused(tmp_path):
    make_splits(tmp_path, "train", "val", "test")
    for number in (1, 2):
        path = tmp_path / "test" / "ant" / f"00{number}.png"
        path.unlink()
        path.symlink_to(tmp_path / "train" / "ant" / f"00{number}.png")
    assert message(tmp_path) == (
        "2 images of the test split are also in the train split: test/ant/001.png (train/ant/001.png), "
        "test/ant/002.png (train/ant/002.png); remove them from one of the two, or allow it "
        "with --config.data.allow_overlap=True"
    )
    allowed = load_folder(tmp_path, SIZE, allow_overlap=True)
    assert allowed.notices[0].startswith("2 images of the test split are also in the train split: ")


def test_copies_across_splits_are_counted_and_reported(tmp_path):
    make_splits(tmp_path, "train", "val", "test")
    copied = (tmp_path / "train" / "ant" / "001.png").read_bytes()
    (tmp_path / "test" / "ant" / "copy.png").write_bytes(copied)
    (tmp_path / "val" / "ant" / "copy.png").write_bytes(copied)
    assert load_folder(tmp_path, SIZE).notices == (
        "1 image of the test split is a copy of a train image: test/ant/copy.png (train/ant/001.png)",
        "1 image of the val split is a copy of a train image: val/ant/copy.png (train/ant/001.png)",
        "1 image of the test split is a copy of a val image: test/ant/copy.png (val/ant/copy.png)",
    )


def test_names_are_relative_to_the_classes(tmp_path):
    make_splits(tmp_path, "train", "val")
    assert {file.key for file in list_folder(tmp_path, []).files if file.part == "val"} == {
        f"{name}/{number:03}.png" for name in CLASSES for number in range(4)
    }
