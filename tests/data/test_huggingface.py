"""Tests of image sets in the forms of Hugging Face; what `datasets` 5.2.0 reads from the same files was the model."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
from image_folders import fill, noise_image
from parquet_files import NAMES, encoded, repository, write

from sft_jax.config import complete
from sft_jax.data import check_source, load_dataset
from sft_jax.data.images.square import Square
from sft_jax.data.sources.huggingface import hub, unpacking
from sft_jax.data.sources.huggingface.splits import split_files
from sft_jax.data.sources.lists import list_files
from sft_jax.errors import UserError

SIZE = 8


def data(source, **keys):
    values = {"data.source": f"hf:{source}", "data.size": SIZE}
    return complete(values | {f"data.{key}": value for key, value in keys.items()}).data


def load(source, labelling="class", **keys):
    return load_dataset(data(source, **keys), seed=0, labelling=labelling)


def listed(source, labelling="class", known=None, **keys):
    notices = []
    listing = list_files("hf", str(source), data(source, **keys), notices, known, labelling)
    return listing, notices


def message(source, labelling="class", **keys):
    with pytest.raises(UserError) as caught:
        load(source, labelling, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def caching(tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_JAX_CACHE", str(tmp_path / "cache"))


def expected(seed):
    return Square(SIZE).of_image(noise_image(seed))


# --- Parquet


@pytest.mark.parametrize(
    ("kind", "target", "value"),
    [
        ("class", "label", lambda seed: seed % 3),
        ("classes", "labels", lambda seed: [seed >> place & 1 for place in range(3)]),
        ("number", "number", lambda seed: seed / 8),
    ],
)
def test_every_row_of_every_shard_has_its_image_and_label(tmp_path, kind, target, value):
    dataset = load(repository(tmp_path / "set", kind), kind)
    assert dataset.class_names == (("age",) if kind == "number" else NAMES)
    for split, first, count in ((dataset.train, 0, 30), (dataset.validation, 100, 9), (dataset.test, 200, 9)):
        rows = [int(name.split("/")[1].split(".")[0]) for name in split.names]
        assert sorted(rows) == list(range(count))
        for place, row in enumerate(rows):
            np.testing.assert_array_equal(split.images[place], expected(first + row))
            np.testing.assert_array_equal(split.targets[target][place], value(first + row))
    assert dataset.notices[:2] == (
        f"{tmp_path}/set: labels from '{ {'class': 'label', 'classes': 'labels', 'number': 'age'}[kind] }'",
        f"{tmp_path}/set: 48 images of 4 Parquet files unpacked in {dataset.record.root}",
    )


def test_shards_of_a_split_need_not_follow_each_other(tmp_path):
    for name, seeds in (("a/train", range(9)), ("b/test", range(100, 109)), ("c/train", range(9, 30))):
        write(tmp_path / f"{name}/0.parquet", seeds)
    dataset = load(tmp_path)
    for split, first in ((dataset.train, 0), (dataset.validation, 0), (dataset.test, 100)):
        seeds = [first + int(name.split("/")[1].split(".")[0]) for name in split.names]
        np.testing.assert_array_equal(split.images, list(map(expected, seeds)))
        np.testing.assert_array_equal(split.labels, np.array(seeds) % 3)


def test_images_are_unpacked_once(tmp_path, caching, monkeypatch):
    root = repository(tmp_path / "set")
    listing, _ = listed(root)
    assert listing.root.is_relative_to(tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(unpacking, "_unpack", None)
        assert listed(root)[0] == listing
    (listing.root / "train" / "00000007.png").unlink()
    assert listed(root)[0] == listing
    assert (listing.root / "train" / "00000007.png").read_bytes() == encoded(7)
    os.utime(root / "data" / "test-00000-of-00001.parquet")  # written again, perhaps with other images
    assert listed(root)[0].root != listing.root


def test_what_a_killed_process_unpacked_is_removed(tmp_path, caching):
    root = repository(tmp_path / "set")
    folder = listed(root)[0].root
    left = folder.rename(folder.with_name(f"{folder.name}.999999999.tmp"))
    listed(root)
    assert folder.is_dir()
    assert not left.exists()


def test_a_small_disk_is_an_error_before_anything_is_written(tmp_path, caching, monkeypatch):
    root = repository(tmp_path / "set")
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 100))
    assert "unpacking its images needs 0 MiB" in (error := message(root))
    assert error.endswith("make room, or name another place with SFT_JAX_CACHE=FOLDER")
    assert not list((tmp_path / "cache").rglob("*.png"))


def test_columns_without_description_are_recognised(tmp_path):
    breeds = [NAMES[seed % 3] for seed in range(40)]
    # As pandas or pyarrow write them; of two columns of images one is called image.
    write(
        tmp_path / "train.parquet", range(40), "number", described=False, extra={"breed": breeds, "thumb": [b""] * 40}
    )
    listing, notices = listed(tmp_path / "train.parquet")
    assert listing.class_names == ("ant", "cat", "dog")
    assert {file.name: file.label for file in listing.files} == {
        f"images/{row:08}.png": breed for row, breed in enumerate(breeds)
    }
    assert notices[0].endswith("train.parquet: labels from 'breed'; columns ignored: 'age', 'thumb'")
    assert listed(tmp_path / "train.parquet", "number")[0].class_names == ("age",)


def test_rows_and_splits_without_labels_are_left_out(tmp_path):
    write(tmp_path / "train.parquet", range(30), labels=[-1, None, *range(2, 3), *[0, 1, 2] * 9])
    write(tmp_path / "test.parquet", range(40, 45), labels=[-1] * 5)
    listing, notices = listed(tmp_path)
    assert len(listing.files) == 28
    assert f"{tmp_path}: 2 rows of train without a label skipped" in notices
    assert f"{tmp_path}: the test split ignored, because none of its 5 images has a label" in notices


def test_all_classes_that_the_set_knows_are_outputs(tmp_path):
    write(tmp_path / "train.parquet", range(30), labels=[0, 2] * 15)
    write(tmp_path / "test.parquet", range(40, 43), labels=[0, 1, 2])
    listing, notices = listed(tmp_path)
    assert listing.class_names == NAMES
    assert f"{tmp_path}: classes without training images: 'dog'" in notices
    assert listed(tmp_path, known=NAMES)[0].class_names == NAMES


def test_images_may_be_files_beside(tmp_path):
    noise_image(5).save(tmp_path / "five.png")
    images = [{"bytes": None, "path": "five.png"}, *({"bytes": encoded(seed), "path": "a.tif"} for seed in range(29))]
    write(tmp_path / "train.parquet", range(30), images=images)
    listing, _ = listed(tmp_path)
    assert (listing.root / "train/00000000.png").read_bytes() == (tmp_path / "five.png").read_bytes()
    (tmp_path / "five.png").unlink()
    os.utime(tmp_path / "train.parquet", ns=(1, 1))
    assert "row 0 of" in (error := message(tmp_path))
    assert error.endswith("has no image, only the path five.png, which does not exist here")


# --- Splits, as `load_dataset(FOLDER)` finds them


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        ({"data/train-00000-of-00001.parquet": "train", "data/extra-00000-of-00001.parquet": "-"}, "extra"),
        ({"train.parquet": "train", "other.parquet": "-"}, "other.parquet"),
        ({"train/0000.parquet": "train", "eval/0000.parquet": "test"}, None),
        ({"x.parquet": None, "sub/y.parquet": None}, None),
        ({"dev.parquet": "val", "training.parquet": "train"}, None),
        ({"default/train/0000.parquet": "train", "other/test/0000.parquet": "test"}, None),
        ({"my_train_1.parquet": "train", "constrained.parquet": "-"}, "constrained.parquet"),
    ],
)
def test_splits_are_named_by_folders_or_files(tmp_path, files, splits):
    notices = []
    assert split_files(tmp_path, list(files), notices) == {name: part for name, part in files.items() if part != "-"}
    assert [splits in line for line in notices] == ([True] if splits else [])


README = """---
license: mit
configs:
{configs}
---
# A set
"""


@pytest.mark.parametrize(
    ("configs", "splits"),
    [
        (
            "- data_files:\n  - split: train\n    path: d/a*\n  - split: test\n    path: [d/b.parquet]",
            {"d/a.parquet": "train", "d/b.parquet": "test"},
        ),
        ("- config_name: one\n  data_files: 'd/*'", {"d/a.parquet": None, "d/b.parquet": None}),
        (
            "- config_name: one\n  data_files: d/a*\n- config_name: two\n  data_dir: e\n  default: true",
            {"e/c.parquet": None},
        ),
    ],
)
def test_the_readme_may_name_the_splits(tmp_path, configs, splits):
    files = ["d/a.parquet", "d/b.parquet", "e/c.parquet"]
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "README.md").write_text(README.format(configs=configs))
    assert split_files(tmp_path, files, []) == splits


@pytest.mark.parametrize(
    ("configs", "error"),
    [
        ("- config_name: a\n- config_name: b", "describes several sets, none of them the default: a, b"),
        ("- data_files: nowhere/*", "names nowhere/* in data_files, which does not exist"),
        ("- {", "begins with YAML that is not valid"),
    ],
)
def test_a_readme_that_cannot_be_followed_is_an_error(tmp_path, configs, error):
    write(tmp_path / "a.parquet", range(3))
    (tmp_path / "README.md").write_text(README.format(configs=configs))
    assert error in message(tmp_path)


def test_missing_shards_are_an_error(tmp_path):
    repository(tmp_path)
    (tmp_path / "data/train-00001-of-00002.parquet").unlink()
    assert "lacks 1 file of a split: data/train-00001-of-00002.parquet" in message(tmp_path)


# --- Metadata files


def metadata(folder, suffix, seeds, **columns):
    """Writes images, and a metadata file with `columns`: name -> function of the seed."""
    (folder / "pics").mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in seeds:
        noise_image(seed).save(folder / "pics" / f"{seed:03}.png")
        rows.append({"file_name": f"pics/{seed:03}.png"} | {name: value(seed) for name, value in columns.items()})
    if suffix == "csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    else:
        lines = map(json.dumps, rows)
    (folder / f"metadata.{suffix}").write_text("".join(f"{line}\n" for line in lines))


def breed(seed):
    return NAMES[seed % 3]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_metadata_files_in_the_folders_of_splits(tmp_path, suffix):
    for split, first in (("train", 0), ("validation", 100), ("test", 200)):
        extra = {"objects": lambda _: {"bbox": [[1, 2, 3, 4]]}} if suffix == "jsonl" else {}
        metadata(tmp_path / split, suffix, range(first, first + 12), label=breed, size=lambda seed: seed, **extra)
    dataset = load(tmp_path)
    assert dataset.class_names == ("ant", "cat", "dog")
    for split, first in ((dataset.train, 0), (dataset.validation, 100), (dataset.test, 200)):
        seeds = [int(name.split("/")[2].split(".")[0]) for name in split.names]
        assert sorted(seeds) == list(range(first, first + 12))
        assert [dataset.class_names[label] for label in split.labels] == list(map(breed, seeds))
        np.testing.assert_array_equal(split.images, list(map(expected, seeds)))
    ignored = "'size', 'objects'" if suffix == "jsonl" else "'size'"
    assert dataset.notices[0] == f"{tmp_path}: labels from 'label'; columns ignored: {ignored}"


def test_one_metadata_file_above_the_splits(tmp_path):
    rows = []
    for split in ("train", "test", "notes"):
        for seed in range(9):
            (tmp_path / split).mkdir(exist_ok=True)
            noise_image(seed + 10 * len(split)).save(tmp_path / split / f"{seed}.png")
            rows.append(f"{split}/{seed}.png,{breed(seed)}\n")
    (tmp_path / "metadata.csv").write_text("file_name,label\n" + "".join(rows))
    listing, notices = listed(tmp_path)
    assert {(file.part, file.name.split("/")[0]) for file in listing.files} == {("train", "train"), ("test", "test")}
    assert f"{tmp_path}: ignored, because not named like a split while others are: notes/0.png" in notices[0]


def test_several_labels_and_numbers_of_metadata(tmp_path):
    tags = {"tags": lambda seed: [name for place, name in enumerate(NAMES) if seed >> place & 1]}
    metadata(tmp_path / "a", "jsonl", range(40), **tags, score=lambda seed: seed / 8)
    several = load(tmp_path / "a", "classes")
    assert several.class_names == ("ant", "cat", "dog")
    seeds = [int(name[5:8]) for name in several.train.names]
    np.testing.assert_array_equal(several.train.targets["labels"], [[s >> 2 & 1, s & 1, s >> 1 & 1] for s in seeds])
    number = load(tmp_path / "a", "number")
    seeds = [int(name[5:8]) for name in number.train.names]
    np.testing.assert_array_equal(number.train.targets["number"], np.array(seeds) / 8)
    assert "column 'tags' has several labels per image; use --config.task=multilabel" in message(
        tmp_path / "a", label_key="tags"
    )
    metadata(tmp_path / "b", "csv", range(40), cat=lambda seed: seed & 1, dog=lambda seed: seed >> 1 & 1)
    marked = load(tmp_path / "b", "classes", label_key="cat;dog")
    assert marked.class_names == ("cat", "dog")
    seeds = [int(name[5:8]) for name in marked.train.names]
    np.testing.assert_array_equal(marked.train.targets["labels"], [[s & 1, s >> 1 & 1] for s in seeds])


def test_folders_of_classes_need_no_metadata(tmp_path):
    fill(tmp_path, ("ant", "bee"), 5)
    assert load(tmp_path).class_names == ("ant", "bee")


# --- Errors


def two_kinds(root):
    metadata(root / "train", "csv", range(3), label=breed)
    metadata(root / "test", "jsonl", range(3), label=breed)


def damaged(root):
    repository(root)
    path = root / "data/test-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-40])


def damaged_inside(root):
    write(root / "train.parquet", range(30), compression="none", use_dictionary=False, write_page_checksum=True)
    content = bytearray((root / "train.parquet").read_bytes())
    start = content.rindex(encoded(3))
    content[start + 200 : start + 300] = bytes(100)
    (root / "train.parquet").write_bytes(content)


def saved(root):
    root.mkdir()
    (root / "state.json").write_text("{}")


def other_columns(root):
    write(root / "train.parquet", range(9))
    write(root / "test.parquet", range(9, 12), extra={"more": [1, 2, 3]})


def both(root):
    repository(root)
    metadata(root, "csv", range(3), label=breed)


def text(name, content):
    def make(root):
        root.mkdir()
        noise_image(0).save(root / "0.png")
        (root / name).write_text(content)

    return make


@pytest.mark.parametrize(
    ("make", "keys", "error"),
    [
        (lambda root: None, {}, "no such folder; for a set of the hub, use hf://OWNER/NAME"),
        (two_kinds, {}, "has metadata files of several kinds, .csv and .jsonl; keep one kind"),
        (damaged, {}, "test-00000-of-00001.parquet cannot be read as a Parquet file"),
        (damaged_inside, {}, "train.parquet cannot be read as a Parquet file (could not verify page integrity"),
        (saved, {}, "was written by `save_to_disk`; write it as Parquet instead"),
        (other_columns, {}, "have different columns"),
        (both, {}, "has metadata.csv and Parquet files"),
        (repository, {"label_key": "kind"}, "has no column 'kind' (columns: 'label')"),
        (repository, {"image_key": "label"}, "has no column 'label' of images (columns: image, label)"),
        (lambda root: repository(root, "classes"), {}, "use --config.task=multilabel"),
        (text("metadata.csv", "file,label\n0.png,a\n"), {}, "every row needs 'file_name'"),
        (text("metadata.csv", "file_name,label\n0.png\n"), {}, "does not have the 2 columns of the header"),
        (text("metadata.csv", "file_name,label\n1.png,a\n"), {}, "1 of its 1 image do not exist: 1.png"),
        (text("metadata.csv", "file_name,label\n../0.png,a\n"), {}, "name images in or below its own folder"),
        (text("metadata.csv", "file_name,label\n0.png,\n"), {}, "has no labels in column 'label'"),
        (text("metadata.csv", "file_name,label\n"), {}, "no rows"),
        (text("metadata.csv", "file_name,p,q\n0.png,a,b\n"), {}, "name it with --config.data.label_key=NAME"),
        (text("metadata.jsonl", '{"file_name": "0.png"\n'), {}, "is not a valid jsonl file"),
        (
            text("metadata.jsonl", '{"file_name": "0.png", "o": {}}\n'),
            {"label_key": "o"},
            "a nested object, or of mixed",
        ),
        (text("notes.txt", ""), {}, "needs one folder of images per class"),
    ],
)
def test_errors_say_what_to_do(tmp_path, make, keys, error):
    make(tmp_path / "set")
    assert error in message(tmp_path / "set", **keys)


def test_a_row_without_an_image_is_named(tmp_path):
    write(tmp_path / "train.parquet", range(3), images=[{"bytes": encoded(0), "path": None}, None, None])
    assert f"row 1 of {tmp_path}/train.parquet has no image" in message(tmp_path)


def test_labels_outside_the_classes_are_an_error(tmp_path):
    write(tmp_path / "train.parquet", range(3), labels=[0, 1, 3])
    assert "column 'label' has 3, but 3 classes" in message(tmp_path)


def test_a_picture_in_two_splits_is_reported(tmp_path):
    repository(tmp_path, splits={"train": (30, 0, 1), "test": (3, 29, 1)})
    assert any("1 image of the test split is a copy of a train image" in line for line in load(tmp_path).notices)


# --- The hub


@pytest.fixture
def of_hub(tmp_path, monkeypatch):
    """Makes the folder that huggingface_hub keeps a downloaded set in; the hub itself is out of reach."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "reachable", lambda host: False)

    def make(commit="0" * 40, **settings):
        folder = tmp_path / "hub" / "datasets--owner--name"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
        return repository(folder / "snapshots" / commit, **settings)

    return make


def test_a_downloaded_set_of_the_hub_is_read(of_hub):
    folder = of_hub()
    listing, _ = listed("//owner/name")
    assert (listing.place, len(listing.files)) == (folder, 48)
    assert listed("//owner/name@" + "0" * 40)[0] == listing
    assert check_source(data("//owner/name")) == (True, f"downloaded in {folder}")
    of_hub("1" * 40, kind="classes")
    # A run keeps the revision that it began with.
    dataset = load_dataset(data("//owner/name"), seed=0, recorded=load(folder).record)
    assert dataset.notices[0] == f"reading {folder}, as recorded by the run"
    assert dataset.class_names == NAMES


def test_a_set_of_the_hub_that_cannot_be_obtained_is_an_error(of_hub, monkeypatch):
    for source in ("//owner/other", "//owner/other@v2"):
        with pytest.raises(UserError, match=r"huggingface.co is unreachable; go online, or use hf:FOLDER of a copy"):
            load(source)
    assert "data.download is False" in message("//owner/other", download=False)
    assert "must be hf://OWNER/NAME" in message("//owner name")
    monkeypatch.setattr(hub, "reachable", lambda host: True)

    def missing(*_, local_files_only=False, **__):
        raise OSError("404 Client Error\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", missing)
    assert message("//owner/other") == (
        "hf://owner/other cannot be downloaded: 404 Client Error; download it by hand, and use hf:FOLDER"
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    assert "needs huggingface_hub: pip install" in message("//owner/other")
