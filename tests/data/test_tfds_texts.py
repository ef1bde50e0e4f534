"""Texts of tensorflow_datasets, with small datasets prepared here in the form of GLUE's."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from prepared_sets import ImageSet, prepare
from text_runs import examples, register, run_on, text_config, write
from tiny_runs import one_device

from sft_jax.data.sources.texts.columns import Keys
from sft_jax.data.sources.texts.everything import labelled_texts
from sft_jax.data.sources.texts.prepared import list_prepared
from sft_jax.errors import UserError
from sft_jax.run.console import Console
from sft_jax.training import trainer as train_module
from sft_jax.training.start import read_dataset

COUNTS = {"train": 203, "validation": 61, "test": 77}
SPLITS = {"train": "train", "val": "validation", "test": "validation"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder of a set of sentences, whose test split has no labels, one of scored pairs, and one of images."""
    folder = tmp_path_factory.mktemp("tfds")
    classes = tfds.features.ClassLabel(names=["negative", "positive"])
    features = {"idx": tfds.features.Scalar(np.int32), "label": classes, "sentence": tfds.features.Text()}
    rows = {
        split: [
            (number, {"idx": number, "label": -1 if split == "test" else label, "sentence": text})
            for number, (text, label) in enumerate(examples(count, seed))
        ]
        for seed, (split, count) in enumerate(COUNTS.items())
    }
    prepare("sentences", folder, tfds.features.FeaturesDict(features), rows)
    texts = {name: tfds.features.Text() for name in ("sentence1", "sentence2")}
    pairs = [
        (number, {"sentence1": f"über {number}", "sentence2": "word1", "label": number / 4, "idx": number})
        for number in range(9)
    ]
    scalars = {"label": tfds.features.Scalar(np.float32), "idx": tfds.features.Scalar(np.int32)}
    prepare("pairs", folder, tfds.features.FeaturesDict(texts | scalars), {"train": pairs})
    ImageSet(2, (8, 8, 3)).prepare("pictures", folder, train=4)
    return folder


def listed(root, name, splits=SPLITS, notices=None, **settings):
    keys = settings.pop("keys", Keys())
    notices = [] if notices is None else notices
    return list_prepared(name, splits, notices, keys, directory=str(root), download=False, **settings)


def test_sentences_have_their_declared_classes(root):
    notices = []
    found = listed(root, "sentences", notices=notices)
    assert found.class_names == ("negative", "positive")
    wanted = sorted((text, label) for text, label in examples(203, 0))
    assert sorted((each.text[0], each.label) for each in found.all if each.part == "train") == wanted
    assert notices == ["tfds:sentences/train: texts from column 'sentence', labels from 'label'"]


def test_pairs_may_have_numbers(root):
    splits = {"train": "train[:5]", "val": "train[5:7]", "test": "train[7:]"}
    found = listed(root, "pairs", splits, labelling="number")
    assert found.class_names == ("label",)
    assert sorted((each.text, each.label) for each in found.all) == [
        ((f"über {number}", "word1"), number / 4) for number in range(9)
    ]
    assert [sum(each.part == part for each in found.all) for part in splits] == [5, 2, 2]


@pytest.mark.long
def test_a_run_reads_and_evaluates_them(root, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "Devices", one_device)
    register(monkeypatch)
    write(tmp_path)
    source = {"data__source": "tfds:sentences", "data__dir": str(root), "data__train": "train"}
    own = source | {"data__validation": "train[150:]", "data__test": "validation"}
    results = run_on(tmp_path, tmp_path / "run", epochs=1, **own)
    assert results["test_count"] == 61
    log = (tmp_path / "run" / "train.log").read_text()
    assert "203 / 53 / 61 train / validation / test texts" in log
    assert "data.validation=train[150:] have 53 texts in common: the best epoch would be selected on texts that" in log
    notices = []
    config = text_config(tmp_path, **own)
    texts, targets = labelled_texts(config, ("positive", "negative"), "validation", notices, "class")
    wanted = sorted((text, int(label == "negative")) for text, label in examples(61, 1))
    assert sorted(zip([text for (text,) in texts], targets["label"].tolist(), strict=True)) == wanted
    config = text_config(tmp_path, **source, data__validation="validation", data__test="train[150:]")
    with pytest.raises(UserError, match="53 texts in common: the training split contains test texts; name disjoint"):
        read_dataset(config, Console(mute=True))


@pytest.mark.parametrize(
    ("name", "splits", "labelling", "message"),
    [
        ("sentences", {"test": "test"}, "class", r"data.test=test has no labels \(all are -1\); tfds:sentences has"),
        ("sentences", {"train": "dev"}, "class", r"data.train=dev cannot be used: .*; tfds:sentences has"),
        (
            "sentences",
            {"train": "train"},
            "number",
            "column 'label' has the classes 'negative', 'positive', no numbers",
        ),
        (
            "pairs",
            {"train": "train"},
            "class",
            "has 9 labels for 9 texts, which are no classes; .*task=text_regression",
        ),
        ("pictures", {"train": "train"}, "class", "tfds:pictures has no texts; its features are image, label"),
    ],
)
def test_what_does_not_fit_is_a_one_line_error(root, name, splits, labelling, message):
    with pytest.raises(UserError, match=message) as raised:
        listed(root, name, splits, labelling=labelling)
    assert "\n" not in str(raised.value)
