"""Tests of tables of labels beside images, as written by Kaggle, pandas and Excel."""

import numpy as np
import pytest
from image_folders import SIZE, noise_image

from sft_jax.config import complete
from sft_jax.data import load_dataset
from sft_jax.data.sources.table import list_table
from sft_jax.errors import UserError

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def made(tmp_path):
    """Writes images below a folder next to the table; returns [(file, label)]."""

    def make(folder="train", suffix=".png", count=12, first=0):
        rows = []
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for index, label in enumerate(CLASSES):
            for number in range(first, first + count):
                name = f"{label}{number}"
                noise_image(1000 * index + number).save(tmp_path / folder / f"{name}{suffix}")
                rows.append((f"{name}{suffix}", label))
        return rows

    return make


def write(path, rows, header="id,label", delimiter=",", encoding="utf-8"):
    lines = [header.replace(",", delimiter)] if header else []
    lines += [delimiter.join(f'"{cell}"' if delimiter in cell else cell for cell in row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def load(path, **keys):
    values = {"data.source": f"csv:{path}", "data.size": SIZE} | {f"data.{key}": value for key, value in keys.items()}
    return load_dataset(complete(values).data, seed=0)


def labels_by_file(path, **keys):
    return {file.name: file.label for file in list_table(path, [], **keys).files}


def message(path, **keys):
    with pytest.raises(UserError) as caught:
        load(path, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_table_beside_a_folder_as_on_kaggle(tmp_path, made):
    table = write(tmp_path / "train.csv", made("train"))
    dataset = load(table)
    assert dataset.class_names == CLASSES
    splits = (dataset.train, dataset.validation, dataset.test)
    assert sum(map(len, splits)) == 36
    for split in splits:
        for name, label in zip(split.names, split.labels, strict=True):
            assert name.startswith(f"train/{CLASSES[label]}")
    assert dataset.notices[0] == (
        f"{table}: files from column 'id', labels from 'label'; files in {tmp_path / 'train'}"
    )
    assert dataset.notices[1].startswith("no val or test split: using about 10%")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_delimiters_and_encodings_are_detected(tmp_path, made, delimiter, encoding):
    rows = made("images")
    table = write(tmp_path / "labels.csv", rows, delimiter=delimiter, encoding=encoding)
    assert labels_by_file(table) == {f"images/{name}": label for name, label in rows}


@pytest.mark.parametrize("folder", [".", "images", "train", "labels"])
def test_files_are_found_in_the_usual_folders(tmp_path, made, folder):
    rows = made(folder)
    assert len(labels_by_file(write(tmp_path / "labels.csv", rows))) == 36


def test_absolute_paths_and_paths_through_parents(tmp_path, made):
    rows = made("elsewhere")
    (tmp_path / "tables").mkdir()
    for start in (str(tmp_path / "elsewhere"), "../elsewhere"):
        table = write(tmp_path / "tables" / "labels.csv", [(f"{start}/{name}", label) for name, label in rows])
        assert labels_by_file(table) == {f"elsewhere/{name}": label for name, label in rows}
        assert len(load(table).train.names) > 20


@pytest.mark.parametrize("change", [lambda name: name[:-4], str.upper, lambda name: f"train\\{name}"])
def test_inexact_file_names_are_matched(tmp_path, made, change):
    """Without a suffix as on Kaggle, in another case, with backslashes."""
    rows = made("train")
    table = write(tmp_path / "train.csv", [(change(name), label) for name, label in rows])
    assert labels_by_file(table) == {f"train/{name}": label for name, label in rows}


def test_an_ambiguous_name_is_refused(tmp_path, made):
    made("train", suffix=".jpg")
    table = write(tmp_path / "train.csv", [(name[:-4], label) for name, label in made("train")])
    assert message(table).endswith("is ambiguous: ant0.jpg, ant0.png; add the suffix, or keep one of them")


@pytest.mark.parametrize(
    "header",
    [
        "file,label",
        "filename,class",
        "image_id,species",
        "Image Path,Category",
        "img,target",
        "id,diagnosis",
        "image,y",
    ],
)
def test_usual_column_names_are_recognised(tmp_path, made, header):
    assert len(labels_by_file(write(tmp_path / "t.csv", made("images"), header=header))) == 36


def test_the_remaining_column_is_the_label(tmp_path, made):
    rows = [(str(number), name, label) for number, (name, label) in enumerate(made("images"))]
    table = write(tmp_path / "t.csv", rows, header="Unnamed: 0,image,kind of animal")
    assert set(labels_by_file(table).values()) == set(CLASSES)


def test_columns_can_be_given_by_name(tmp_path, made):
    rows = [(label, name, "x", "1") for name, label in made("images")]
    table = write(tmp_path / "t.csv", rows, header="what,where,note,weight")
    assert message(table) == (
        f"{table}: cannot tell which column has the labels; name it with --config.data.label_key=NAME (columns: "
        f"'what', 'where', 'note', 'weight')"
    )
    assert len(load(table, image_key="where", label_key="what").train) > 20
    assert message(table, image_key="file") == (
        f"{table} has no column 'file'; its columns are 'what', 'where', 'note', 'weight'"
    )


def test_a_header_is_optional(tmp_path, made):
    rows = made("images")
    table = write(tmp_path / "t.csv", rows, header=None)
    assert labels_by_file(table) == {f"images/{name}": label for name, label in rows}
    turned = write(tmp_path / "u.csv", [(label, name) for name, label in rows], header=None)
    assert labels_by_file(turned) == labels_by_file(table)
    assert labels_by_file(turned, image_key="1", label_key="0") == labels_by_file(table)


@pytest.mark.parametrize(
    "words", [("train", "val", "test"), ("Training", "valid", "Testing"), ("TRAIN", "dev", "test")]
)
def test_a_column_may_give_the_split(tmp_path, made, words):
    rows = [(name, label, words[number % 3]) for number, (name, label) in enumerate(made("images"))]
    dataset = load(write(tmp_path / "t.csv", rows, header="image,label,split"))
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [12, 12, 12]
    assert len(dataset.notices) == 1
    assert "split from 'split'" in dataset.notices[0]


def test_folds_are_not_splits_and_unknown_splits_are_refused(tmp_path, made):
    rows = [(name, label, str(number % 5)) for number, (name, label) in enumerate(made("images"))]
    assert sum(map(len, parts(load(write(tmp_path / "t.csv", rows, header="image,label,fold"))))) == 36
    rows[3:5] = [(*row[:2], "train") for row in rows[3:5]]
    table = write(tmp_path / "t.csv", rows, header="image,label,set")
    assert message(table) == f"{table}: column 'set' must say train, validation or test, not '0', '1', '2' and 2 more"


def parts(dataset):
    return dataset.train, dataset.validation, dataset.test


def test_numeric_classes_are_sorted_as_numbers(tmp_path, made):
    rows = [(name, str(number % 12)) for number, (name, _) in enumerate(made("images"))]
    dataset = load(write(tmp_path / "t.csv", rows))
    assert dataset.class_names == tuple(map(str, range(12)))
    assert np.bincount(np.concatenate([split.labels for split in parts(dataset)])).tolist() == [3] * 12


def test_missing_files_are_counted_and_named(tmp_path, made):
    rows = [*made("images"), *((f"gone{number}.png", "ant") for number in range(5))]
    assert message(write(tmp_path / "t.csv", rows)).startswith(
        f"{tmp_path / 't.csv'}: 5 of its 41 files do not exist: gone0.png, gone1.png, gone2.png and 2 "
        f"more; searched in {tmp_path}, {tmp_path / 'images'}"
    )


@pytest.mark.parametrize("several", ["ant|bee", "bee;ant", "ant,bee", "ant bee"])
def test_several_labels_of_an_image_are_refused(tmp_path, made, several):
    rows = [*made("images")[:-1], ("cat11.png", several)]
    assert f"{several!r} looks like several labels; use --config.task=multilabel, or" in message(
        write(tmp_path / "t.csv", rows, delimiter="\t")
    )


def test_class_names_may_contain_commas_and_spaces(tmp_path, made):
    rows = [(name, f"{label}, the animal") for name, label in made("images")]
    assert load(write(tmp_path / "t.csv", rows)).class_names == tuple(f"{name}, the animal" for name in CLASSES)


def test_repeated_rows_are_skipped_and_contradictions_refused(tmp_path, made):
    rows = made("images")
    dataset = load(write(tmp_path / "t.csv", [*rows, *rows[:3]]))
    assert sum(map(len, parts(dataset))) == 36
    assert f"3 duplicate rows of {tmp_path / 't.csv'} skipped" in dataset.notices
    table = write(tmp_path / "t.csv", [*rows, ("ant0.png", "bee")])
    assert message(table) == f"{table} lists images/ant0.png twice, as 'ant' and as 'bee'; keep one of them"


def test_rows_without_a_label_are_skipped_with_a_notice(tmp_path, made):
    rows = made("images")
    dataset = load(write(tmp_path / "t.csv", [*rows[:-4], *((name, "") for name, _ in rows[-4:])]))
    assert sum(map(len, parts(dataset))) == 32
    assert f"4 rows of {tmp_path / 't.csv'} without a label skipped" in dataset.notices


def test_labels_that_training_lacks_are_refused(tmp_path, made):
    rows = [(name, label, "test" if label == "cat" else "train") for name, label in made("images")]
    assert "has labels that are not in the training split: 'cat'" in message(
        write(tmp_path / "t.csv", rows, header="image,label,split")
    )


def test_a_different_number_for_each_image_is_refused(tmp_path, made):
    rows = [(name, f"{number}.5") for number, (name, _) in enumerate(made("images"))]
    assert "has a different number for each image, not classes" in message(write(tmp_path / "t.csv", rows))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\x00\xff\x00", "is not UTF-8 text; save it as CSV in UTF-8"),
        (b"\xe4\xf6\xfc,\xdf\n", "is not UTF-8 text; save it as CSV in UTF-8"),
        (b"id,label\n", "has no labels in column 'label'"),
        (b"just text\nmore\n", "cannot tell which column has the files"),
    ],
)
def test_files_that_are_not_tables_are_refused(tmp_path, content, said):
    (tmp_path / "t.csv").write_bytes(content)
    assert said in message(tmp_path / "t.csv")
    assert message(tmp_path / "no.csv").endswith("no such file")
    assert message(tmp_path).endswith(f" is a folder; name a table in it, or use folder:{tmp_path}")


def test_splits_follow_the_file_names_not_the_folder(tmp_path, made):
    """The same table gives the same splits wherever the images are."""
    rows = made("train")
    one = load(write(tmp_path / "train.csv", rows))
    (tmp_path / "train").rename(tmp_path / "images")
    other = load(write(tmp_path / "other.csv", [*rows[20:], *rows[:20]]))
    for split, same in zip(parts(one), parts(other), strict=True):
        assert {name.split("/")[-1] for name in split.names} == {name.split("/")[-1] for name in same.names}
