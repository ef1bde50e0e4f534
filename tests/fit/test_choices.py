"""Tests of what `sft_jax.fit` sees of data and weights, and of the settings that it derives from them."""

import shutil

import numpy as np
import pytest
from image_folders import fill, noise_image
from made_run import make_run
from table_runs import several

from sft_jax.config import complete
from sft_jax.errors import UserError
from sft_jax.fit import sight, weights
from sft_jax.fit.choices import Choices, choose_batch, choose_fit, choose_method, few_per_class, sizes_for
from sft_jax.fit.sight import Sight, look_at, named_source
from sft_jax.models import ARCHITECTURES
from sft_jax.models.weights import Weights, save_weights
from sft_jax.run.console import Console
from sft_jax.run.weights import load_run_weights
from sft_jax.tasks.classification import Classification
from sft_jax.tasks.multilabel import Multilabel


def seen(sides=((100, 100),), train=1000, classes=None):
    return Sight({"train": train, "val": 100, "test": 100}, classes, np.array(sides), [])


def look(source, **changes):
    return look_at(complete({"data.source": source, "model.name": "tiny", **changes}), Console(quiet=True))


def test_a_path_names_its_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "flowers", ("a", "b"), 1)
    (tmp_path / "t.csv").touch()
    assert named_source("flowers") == named_source("folder:flowers") == f"folder:{tmp_path}/flowers"
    assert named_source("t.csv") == named_source("csv:t.csv") == f"csv:{tmp_path}/t.csv"
    for file in ("set/data/train-00000-of-00001.parquet", "meta/train/metadata.jsonl"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    assert named_source("set") == f"hf:{tmp_path}/set"
    assert named_source("meta") == f"hf:{tmp_path}/meta"
    assert named_source("hf://owner/name") == "hf://owner/name"
    assert (named_source("digits"), named_source("digits:0-4")) == ("digits", "digits:0-4")
    assert named_source("tfds:cifar10") == "tfds:cifar10"
    with pytest.raises(UserError, match="no folder or table roses; name one, or one of tfds:NAME, folder:PATH"):
        named_source("roses")


def test_a_folder_is_counted_measured_and_its_splits_are_said(tmp_path):
    fill(tmp_path, ("ant", "bee"), 40)
    for number in range(4):
        (tmp_path / "cat").mkdir(exist_ok=True)
        noise_image(number, 30, 20).save(tmp_path / "cat" / f"{number}.png")
    found = look(f"folder:{tmp_path}")
    assert sum(found.counts.values()) == 84
    assert found.classes["cat"] == 2
    assert found.classes["ant"] + found.classes["bee"] + 2 == found.counts["train"]
    assert {(12, 10), (30, 20)} == {tuple(side) for side in found.sides.tolist()}
    assert any("no val or test split: using about 10% of the training images" in line for line in found.lines)
    assert found.lines[-1] == "classes with few training images, of which little can be expected: 'cat' (2)"


def test_given_splits_are_said_and_single_images_refused(tmp_path):
    for number, part in enumerate(("train", "val", "test")):
        fill(tmp_path / part, ("ant", "bee"), 12, start=100 * number)
    assert "the splits are those of the source" in look(f"folder:{tmp_path}").lines
    shutil.copytree(tmp_path / "train" / "ant", tmp_path / "train" / "cat")
    for path in sorted((tmp_path / "train" / "cat").iterdir())[1:]:
        path.unlink()
    with pytest.raises(UserError, match="fewer than 2: 'cat'; add images of it, or remove the class"):
        look(f"folder:{tmp_path}")


def test_tables_of_labels_have_no_classes(tmp_path):
    found = look(f"csv:{several(tmp_path, 30)}", task="multilabel")
    assert found.classes is None
    assert few_per_class(found) is None


def test_tfds_splits_are_those_there_are(monkeypatch):
    config = complete({"data.source": "tfds:some"})

    def of(*names, **given):
        monkeypatch.setattr(sight, "split_names", lambda *_, **__: list(names))
        return tuple(sight.splits_of(config, given).values())

    assert of("train", "validation", "test") == ("train", "validation", "test")
    assert of("test", "train") == ("train[:90%]", "train[90%:]", "test")
    assert of("train", "validation") == ("train[:90%]", "validation", "train[90%:]")
    assert of("train") == ("train[:80%]", "train[80%:90%]", "train[90%:]")
    assert of("train", **{"data.test": "train[:5]"}) == ()
    assert sight.splits_of(complete({"data.source": "digits"}), {}) == {}


@pytest.mark.parametrize(
    ("sides", "task", "fit"),
    [
        ((400, 300), Classification, "crop"),
        ((400, 300), Multilabel, "pad"),
        ((160, 90), Classification, "pad"),
        ((128, 128), Multilabel, "crop"),
    ],
)
def test_images_are_cropped_unless_too_much_is_lost(sides, task, fit):
    choices = Choices({})
    choose_fit(choices, seen([sides]), task)
    assert choices.values == {"data.fit": fit}
    assert f"{1 - min(sides) / max(sides):.0%} of an image on average" in choices.lines[0][1]


def test_a_batch_divides_over_the_devices_and_leaves_steps():
    cases = ((5_000, 1, 32), (5_000, 3, 30), (40, 1, 10), (40, 8, 8), (100_000, 1, 64), (600_000, 8, 128))
    for images, devices, batch in cases:
        choices = Choices({})
        choose_batch(choices, seen(train=images), devices)
        assert choices.values == {"batch_size": batch}


def test_what_the_user_gives_is_kept_and_said():
    choices = Choices({"batch_size": 7})
    choose_batch(choices, seen(), 1)
    assert choices.values == {"batch_size": 7}
    assert choices.lines == [("batch", "32 images, for 1,000 training images; batch_size=7 as you say")]


def test_a_method_replaces_the_one_before():
    choices = Choices({})
    choose_method(choices, 5, "first", scratch=False)
    assert choices.values["epochs"] == 6
    choose_method(choices, 0, "then", scratch=False)
    assert choices.values.keys() == {"finetune.method", "epochs", "optimizer.learning_rate"}
    assert len(choices.lines) == 1


def test_sizes_are_limited_by_the_images_and_the_network():
    resnet, vit = ARCHITECTURES["resnet18"], ARCHITECTURES["vit_small_patch16_224"]
    assert sizes_for(resnet, 224, seen([(640, 480)]))[:3] == [224, 216, 208]
    assert sizes_for(resnet, 224, seen([(100, 100)]))[0] == 168
    assert sizes_for(resnet, 224, seen([(8, 8)])) == [64]
    assert sizes_for(vit, 224, seen([(640, 480)]))[:3] == [224, 208, 192]


def test_few_images_per_class_are_noticed():
    assert few_per_class(seen(classes={"a": 10, "b": 12, "c": 900})) == 12
    assert few_per_class(seen(classes={"a": 10, "b": 120})) is None


@pytest.fixture
def converted(tmp_path, monkeypatch):
    """A folder with weights of the network "tiny", in an empty working directory without installed packages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "PACKAGES", {"efficientnet-lite0": weights.PACKAGES["efficientnet-lite0"]})
    monkeypatch.setattr(type(weights.PACKAGES["efficientnet-lite0"]), "path", lambda self: None)
    run = make_run(tmp_path / "run", names=("ant", "bee"))
    folder = tmp_path / "weights"
    folder.mkdir()
    save_weights(folder / "tiny.safetensors", load_run_weights(run.folder))
    return folder


def test_weights_are_those_in_the_usual_folder_or_named(converted, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "row", lambda name: {"top1": None})
    notices = []
    (found,) = weights.candidates(None, notices)
    assert (found.arch, found.stem, found.init) == ("tiny", "imagenet", str(converted / "tiny.safetensors"))
    for named in (converted, converted / "tiny.safetensors"):
        assert weights.candidates(named, notices) == [found]
    (of_run,) = weights.candidates(tmp_path / "run", notices)
    assert (of_run.arch, of_run.init) == ("tiny", str(tmp_path / "run"))
    assert not notices
    (converted / "broken.safetensors").write_bytes(b"no weights")
    save_weights(converted / "odd.safetensors", Weights({}, "unknown", None, {}))
    assert weights.candidates(None, notices) == [found]
    assert len(notices) == 2
    assert notices[0].startswith("not used: ")
    assert "contains a unknown, which is an unknown network" in notices[1]


def test_without_weights_it_is_said_how_to_get_them(converted, tmp_path):
    shutil.rmtree(converted)
    with pytest.raises(UserError, match=r"no pretrained weights here: install some with pip .*lite0.*, convert"):
        weights.candidates(None, [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no pretrained weights in .*empty"):
        weights.candidates(tmp_path / "empty", [])
