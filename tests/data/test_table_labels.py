"""Tests of tables that give several labels or a number per image."""

import numpy as np
import pytest
from image_folders import SIZE, fill, noise_image

from sft_jax.config import complete
from sft_jax.data import load_dataset
from sft_jax.data.sources.table import list_table
from sft_jax.errors import UserError


def write(folder, rows, header="file,labels"):
    """Writes a table and an image for each row."""
    for index, row in enumerate(rows):
        noise_image(index).save(folder / row.split(",")[0])
    path = folder / "t.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def labels(path, labelling="classes", **keys):
    """Returns labels by file, the names of the outputs, and the notices."""
    notices = []
    listing = list_table(path, notices, labelling=labelling, **keys)
    return {file.name: file.label for file in listing.files}, listing.class_names, notices


def message(path, labelling="classes", **keys):
    with pytest.raises(UserError) as caught:
        labels(path, labelling, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("separator", "shown"), [(";", "';'"), ("|", "'|'"), (",", "','"), (", ", "','"), (" ", "spaces"), ("; ", "';'")]
)
def test_separators_are_guessed_and_said(tmp_path, separator, shown):
    cells = [["cat", "dog"], ["cat"], ["dog"], ["ant", "cat", "dog"], ["ant"], []]
    path = write(tmp_path, [f'{i}.png,"{separator.join(cell)}"' for i, cell in enumerate(cells)])
    by_file, names, notices = labels(path)
    assert by_file == {f"{i}.png": tuple(sorted(cell)) for i, cell in enumerate(cells)}
    assert names == ("ant", "cat", "dog")
    assert (
        f"{path}: labels in column 'labels', several of them separated by {shown}; none in the empty cells of 1 image"
        in notices
    )


def test_names_of_two_words_are_not_separated(tmp_path):
    path = write(tmp_path, ["0.png,guinea pig", "1.png,polar bear", "2.png,guinea pig"])
    by_file, names, notices = labels(path)
    assert names == ("guinea pig", "polar bear")
    assert by_file["1.png"] == ("polar bear",)
    assert f"{path}: labels in column 'labels', no separator found, so that each image has one label" in notices


@pytest.mark.parametrize("keys", [{}, {"label_key": "dog;cat"}, {"label_key": "*"}])
def test_columns_of_0_and_1_are_labels(tmp_path, keys):
    path = write(tmp_path, ["0.png,1,0", "1.png,0,1", "2.png,1,1", "3.png,0,0"], header="file,dog,cat")
    by_file, names, notices = labels(path, **keys)
    assert by_file == {"0.png": ("dog",), "1.png": ("cat",), "2.png": ("cat", "dog"), "3.png": ()}
    assert names == ("dog", "cat")
    assert "labels from 'dog', 'cat'; files in" in notices[0]


def test_a_column_of_labels_must_be_0_or_1(tmp_path):
    path = write(tmp_path, ["0.png,1,0", "1.png,0,maybe"], header="file,dog,cat")
    assert message(path, label_key="dog;cat") == (
        f"{path}: column 'cat' has 'maybe'; a column of one label must be 0 or 1 in every row"
    )
    assert "has no column 'cow'; its columns are 'file', 'dog', 'cat'" in message(path, label_key="dog;cow")
    assert "cannot tell which column has the labels" in message(path)


def test_targets_have_a_column_for_each_label(tmp_path):
    rows = [f"{i:02}.png,{'cat;dog' if i % 3 else 'dog'}" for i in range(40)]
    config = complete({"data.source": f"csv:{write(tmp_path, rows)}", "data.size": SIZE}).data
    dataset = load_dataset(config, seed=0, labelling="classes")
    assert dataset.class_names == ("cat", "dog")
    for split in (dataset.train, dataset.validation, dataset.test):
        wanted = [[int(name[:2]) % 3 > 0, True] for name in split.names]
        np.testing.assert_array_equal(split.targets["labels"], np.array(wanted, np.uint8), strict=True)
    assert sum(map(len, (dataset.train, dataset.validation, dataset.test))) == 40
    assert any(
        line.startswith("no val or test split: using about 10% of the training images, chosen")
        for line in dataset.notices
    )
    again = load_dataset(config, seed=5, labelling="classes", recorded=dataset.record, resuming=True)
    assert again.train.names == dataset.train.names
    np.testing.assert_array_equal(again.train.targets["labels"], dataset.train.targets["labels"])


def test_changed_labels_are_refused_when_a_run_is_resumed(tmp_path):
    rows = [f"{i:02}.png,{'cat;dog' if i % 3 else 'dog'}" for i in range(40)]
    config = complete({"data.source": f"csv:{write(tmp_path, rows)}", "data.size": SIZE}).data
    record = load_dataset(config, seed=0, labelling="classes").record
    write(tmp_path, ["00.png,cat;dog", *rows[1:]])
    with pytest.raises(UserError, match=r"labels of 1 image changed .* 00.png was \('dog',\), is now \('cat', 'dog'\)"):
        load_dataset(config, seed=0, labelling="classes", recorded=record)


def test_labels_that_only_other_splits_have_are_reported_or_refused(tmp_path):
    path = write(tmp_path, ["0.png,a;b,train", "1.png,a,val", "2.png,c,test"], header="file,labels,split")
    assert "has labels that are not in the training split: 'c'" in message(path)
    path = write(tmp_path, ["0.png,a;b,train", "1.png,a,val", "2.png,b,test"], header="file,labels,split")
    config = complete({"data.source": f"csv:{path}", "data.size": SIZE}).data
    notices = load_dataset(config, seed=0, labelling="classes").notices
    assert "the val split has no images of 'b'" in notices
    assert "the test split has no images of 'a'" in notices


def test_a_table_without_labels_is_refused(tmp_path):
    assert "no image has a label in 'labels'" in message(write(tmp_path, ["0.png,", "1.png,"]))


def test_numbers_are_read(tmp_path):
    path = write(tmp_path, ["0.png,3,x", "1.png,-2.5e1,y", "2.png,,z"], header="file,age,name2")
    by_file, names, notices = labels(path, "number")
    assert by_file == {"0.png": 3.0, "1.png": -25.0}
    assert names == ("age",)
    assert f"1 row of {path} without a label skipped" in notices


@pytest.mark.parametrize("cell", ["old", "nan", "inf", '"3,5"'])
def test_other_than_finite_numbers_are_refused(tmp_path, cell):
    path = write(tmp_path, ["0.png,3", f"1.png,{cell}"], header="file,age")
    text = cell.strip('"')
    assert message(path, "number") == f"{path}: a cell of column 'age' is {text!r}, not a number, which the task needs"


def test_numbers_are_targets_and_recorded(tmp_path):
    rows = [f"{i:02}.png,{i / 8}" for i in range(40)]
    config = complete({"data.source": f"csv:{write(tmp_path, rows, 'file,age')}", "data.size": SIZE}).data
    dataset = load_dataset(config, seed=0, labelling="number")
    for split in (dataset.train, dataset.validation, dataset.test):
        wanted = [int(name[:2]) / 8 for name in split.names]
        np.testing.assert_array_equal(split.targets["number"], np.array(wanted, np.float32), strict=True)
    record = type(dataset.record).from_json(dataset.record.to_json())
    again = load_dataset(config, seed=0, labelling="number", recorded=record, resuming=True)
    np.testing.assert_array_equal(again.train.targets["number"], dataset.train.targets["number"])


def test_classes_called_by_numbers_are_numbers(tmp_path):
    fill(tmp_path, ("1", "2.5"), 12)
    config = complete({"data.source": f"folder:{tmp_path}", "data.size": SIZE}).data
    dataset = load_dataset(config, seed=0, labelling="number")
    assert set(dataset.train.targets["number"].tolist()) == {1.0, 2.5}
    assert dataset.notices[-1] == f"folder:{tmp_path}: the names of its classes are the numbers to predict"
    fill(tmp_path, ("x",), 12)
    with pytest.raises(UserError, match=r"a class of folder:.* is 'x', not a number"):
        load_dataset(config, seed=0, labelling="number")


@pytest.mark.parametrize("source", ["digits", "folder:x", "tfds:cifar10"])
def test_sources_of_classes_have_no_several_labels(source):
    with pytest.raises(UserError) as caught:
        load_dataset(complete({"data.source": source}).data, seed=0, labelling="classes")
    assert str(caught.value) == (
        f"config.data.source={source} has one class per image, but the task needs any number of labels per image; "
        f"use csv:FILE, hf:PATH, hf://OWNER/NAME"
    )
