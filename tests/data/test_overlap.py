"""Tests that overlapping splits of datasets are reported, and refused if a run would train on test images."""

import numpy as np
import pytest
from made_run import make_run
from prepared_sets import ImageSet

from sft_jax.config import complete
from sft_jax.data import load_dataset
from sft_jax.data.sources.tfds import positions
from sft_jax.errors import UserError
from sft_jax.run.console import Console
from sft_jax.training.start import read_dataset


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    ImageSet(3, (8, 8, 3)).prepare("few", directory, train=60, test=30)
    return directory


def load(directory, train, validation, test, **settings):
    values = {"source": "tfds:few", "dir": str(directory), "train": train, "validation": validation, "test": test}
    config = complete({f"data.{name}": value for name, value in (values | settings).items()})
    return load_dataset(config.data, seed=0)


def test_disjoint_splits_give_no_notice(few):
    assert load(few, "train[:45]", "train[45:]", "test").notices == ()


@pytest.mark.parametrize(
    ("train", "validation", "test", "shared"),
    [
        ("train", "train[50:]", "train[:10]", 10),
        ("train[:75%]", "train[75%:]", "train[40:60]", 5),
        ("train+test[:7]", "test[7:]", "test", 7),
        ("train", "test", "train", 60),
    ],
)
def test_training_on_test_images_is_refused(few, train, validation, test, shared):
    with pytest.raises(UserError) as caught:
        load(few, train, validation, test)
    assert str(caught.value) == (
        f"data.train={train} and data.test={test} have {shared} images in common: the training split contains test "
        f"images; name disjoint splits, or allow it with --config.data.allow_overlap=True"
    )
    allowed = load(few, train, validation, test, allow_overlap=True)
    assert any(f"data.test={test} have {shared} images in common" in line for line in allowed.notices)


def test_training_on_validation_images_is_reported(few):
    """data.train=train while the validation split is still the recipe's."""
    dataset = load(few, "train", "train[45:]", "test")
    assert dataset.notices == (
        "data.train=train and data.validation=train[45:] have 15 images in common: the best epoch would "
        "be selected on images that the network was trained on",
    )


def test_selecting_on_test_images_is_reported(few):
    """As the README's comparison with PyTorch does."""
    assert load(few, "train", "test", "test").notices == (
        "data.validation=test and data.test=test have 30 images in common: the best epoch would be selected on test "
        "images",
    )


def test_common_images_are_counted(few):
    """Splits are evaluated by tfds, so any expression works."""
    ranges = [positions("few", directory=str(few), split=split) for split in ("train[10:20]", "train[15%:50%]")]
    (one,), (other,) = (next(iter(each.values())) for each in ranges)
    assert (len(one), len(other)) == (10, 21)
    assert len(np.intersect1d(one, other)) == 10


def test_the_training_split_of_an_earlier_run_counts(few, tmp_path):
    """With init=RUN, the network was also trained on that run's images."""
    splits = {
        "data.source": "tfds:few",
        "data.dir": str(few),
        "data.train": "train[:40]",
        "data.validation": "train[50:]",
    }
    run = make_run(tmp_path / "run", **splits)
    values = splits | {"init": str(run.folder), "data.train": "train[:10]"}
    assert read_dataset(complete(values | {"data.test": "train[40:50]"}), Console()).notices == ()
    overlapping = values | {"data.test": "train[35:50]"}
    with pytest.raises(UserError) as caught:
        read_dataset(complete(overlapping), Console())
    assert str(caught.value).startswith(
        f"data.train=train[:40] of init={run.folder} and data.test=train[35:50] have 5 images in common: "
    )
    allowed = read_dataset(complete(overlapping | {"data.allow_overlap": True}), Console())
    assert len(allowed.notices) == 1
