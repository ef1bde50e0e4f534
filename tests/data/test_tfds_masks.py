"""Tests of datasets of tensorflow_datasets whose images have masks, prepared here."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from mask_folders import NAMES, VOID, fill, pictured
from mask_runs import run_on
from PIL import Image
from prepared_sets import encoded, prepare

from sft_jax.config import complete
from sft_jax.data.images.reading import Reading
from sft_jax.data.sources.load import load_dataset
from sft_jax.data.sources.tfds import features_of, load_tfds
from sft_jax.data.sources.tfds_masks import MaskRecords
from sft_jax.doctor.assumed import dataset_shapes
from sft_jax.errors import UserError
from sft_jax.evaluate import evaluate
from sft_jax.run.console import Console
from sft_jax.run.folder import Run

PARTS = {"train": 16, "test": 8}
SPLITS = ("train", "test", "test")


def examples(count, start, change):
    for number in range(count):
        picture, mask = pictured(start + number)
        files = {"image": Image.fromarray(picture), "segmentation_mask": change(mask)}
        yield str(number), {name: encoded(image, "PNG") for name, image in files.items()} | {"label": number % 2}


def made(name, directory, feature=None, change=Image.fromarray):
    """Prepares a dataset like Oxford-IIIT Pet: with a class for each image beside the mask."""
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(num_classes=2),
        "segmentation_mask": feature or tfds.features.Image(shape=(None, None, 1)),
    }
    splits = {part: examples(count, 1000 * place, change) for place, (part, count) in enumerate(PARTS.items())}
    prepare(name, directory, tfds.features.FeaturesDict(features), splits)
    return directory


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = made("shapes", tmp_path_factory.mktemp("tfds"))
    return made("named", directory, tfds.features.LabeledImage(labels=list(NAMES), shape=(None, None, 1)))


def load(name, directory, ignored=VOID, **settings):
    where = {"directory": str(directory), "download": False, "splits": SPLITS, "size": 16}
    return load_tfds(name, **where, reading=Reading(ignored=ignored, fit="pad", **settings), make=MaskRecords)


def message(name, directory, **settings):
    with pytest.raises(UserError) as caught:
        load(name, directory, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("memory", [None, 0])
def test_they_are_read_as_folders_are(prepared, tmp_path, memory):
    fill(tmp_path, PARTS["test"], 1000)
    own = complete({"data.source": f"masks:{tmp_path}", "data.size": 16, "data.fit": "pad", "data.ignore_index": VOID})
    folder = load_dataset(own.data, seed=0, labelling="mask", once=True)
    dataset = load("shapes", prepared, memory_bytes=memory)
    (images,) = dataset.test.batches(np.arange(8)[None])
    found = {image.tobytes(): mask for image, mask in zip(images["image"], images["mask"], strict=True)}
    assert len(found) == 8
    for split in (folder.train, folder.validation, folder.test):
        for batch in split.batches(np.arange(len(split))[:, None]):
            np.testing.assert_array_equal(found[batch["image"][0].tobytes()], batch["mask"][0])


def test_classes_have_names_or_are_the_values(prepared):
    assert load("named", prepared).class_names == NAMES
    dataset = load("shapes", prepared)
    assert dataset.class_names == ("0", "1", "2")
    assert "tfds:shapes: using feature 'segmentation_mask' as the mask" in dataset.notices
    assert "tfds:shapes: the classes are the values of the masks, 0 to 2" in dataset.notices


def test_classes_may_begin_at_1(tmp_path):
    made("pets", tmp_path, change=lambda mask: Image.fromarray(np.where(mask == VOID, mask, mask + 1).astype(np.uint8)))
    dataset = load("pets", tmp_path)
    assert dataset.class_names == ("0", "1", "2", "3")
    assert dataset.notices[-1].endswith("the classes are the values of the masks, 0 to 3; no pixel is of 0")
    # The cache has what the masks were read for.
    assert load("pets", tmp_path).notices == dataset.notices
    assert len(load("pets", tmp_path, ignored=None).class_names) == VOID + 1


def test_what_does_not_fit_is_one_line(prepared, tmp_path):
    assert message("named", prepared, ignored=255) == (
        f"masks of tfds:named have the value {VOID}, but the 3 classes are 0 to 2; if it marks pixels to ignore, use "
        f"--config.data.ignore_index={VOID}"
    )
    made("coloured", tmp_path, tfds.features.Image(shape=(None, None, 3)), lambda mask: Image.new("RGB", (24, 20)))
    assert "of tfds:coloured has colours (mode RGB), but each pixel must be the index" in message("coloured", tmp_path)
    made("larger", tmp_path, change=lambda mask: Image.new("L", (25, 20)))
    assert "of tfds:larger has 25 x 20 pixels, but its picture 24 x 20" in message("larger", tmp_path)
    made("one", tmp_path, change=lambda mask: Image.new("L", (24, 20)))
    assert message("one", tmp_path).endswith("have one class, but segmentation needs two or more")
    made("high", tmp_path, change=lambda mask: Image.new("L", (24, 20), 255))
    assert "have the value 255, which no class can have" in message("high", tmp_path, ignored=None)


def test_a_set_without_masks_is_refused(tmp_path):
    features = {"image": tfds.features.Image(shape=(8, 8, 3)), "label": tfds.features.ClassLabel(num_classes=2)}
    pairs = [("0", {"image": encoded(Image.new("RGB", (8, 8)), "PNG"), "label": 0})]
    prepare("plain", tmp_path, tfds.features.FeaturesDict(features), {"train": pairs, "test": pairs})
    assert message("plain", tmp_path) == (
        "tfds:plain: cannot tell which feature is the mask; none of its features is a second image"
    )


def test_masks_that_do_not_fit_into_memory_are_refused(prepared, monkeypatch):
    monkeypatch.setattr("sft_jax.runtime.memory.MEMORY_FRACTION", 0.0)
    with pytest.raises(UserError, match="the masks at 16 px need .* of memory, of which .* are free; use a"):
        load("named", prepared, memory_bytes=0)


@pytest.mark.long
def test_a_run_learns_them_and_is_evaluated_again(prepared, tmp_path):
    where = {"source": "tfds:shapes", "dir": str(prepared), "label_key": "segmentation_mask"}
    keys = where | dict(zip(("train", "validation", "test"), SPLITS, strict=True))
    results = run_on("", tmp_path / "run", epochs=2, **{f"data__{name}": value for name, value in keys.items()})
    again, _, _ = evaluate(Run(tmp_path / "run"), "test", "best", [], Console(mute=True))
    assert again["test_mean_iou"] == results["test_mean_iou"] > 0
    assert again["test_count"] == results["test_count"]


def test_a_set_that_is_not_here_has_no_known_classes():
    config = complete({"task": "segmentation", "model.name": "fcn_resnet18", "data.source": "tfds:oxford_iiit_pet"})
    with pytest.raises(UserError, match="is not on this machine, and its classes cannot be told without its masks"):
        dataset_shapes(config, Console(mute=True))


@pytest.mark.parametrize(
    ("name", "image_key", "keys"),
    [
        ("oxford_iiit_pet", None, ("image", "segmentation_mask")),
        ("scene_parse150", None, ("image", "annotation")),
        ("cityscapes", "image_left", ("image_left", "segmentation_label")),
    ],
)
def test_the_features_of_published_sets_are_found(name, image_key, keys):
    builder = tfds.builder(name)
    assert features_of(builder, name, image_key, None, MaskRecords, []) == keys
