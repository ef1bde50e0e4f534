"""Tests that no image of a folder that has changed moves silently between the classes or splits of a run."""

import contextlib
import gzip
import json
import shutil

import numpy as np
import pytest
from image_folders import fill
from made_run import make_run
from tiny_runs import assert_same_run, run, state_of

from sft_jax.config import complete
from sft_jax.data.sources.folder import list_folder
from sft_jax.data.sources.listing import Record
from sft_jax.data.sources.parts import decided
from sft_jax.data.sources.record import as_recorded, record_of, trained_among
from sft_jax.errors import UserError
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.training.start import read_dataset

CLASSES = ["ant", "bee", "cat"]
PARTS = ("train", "val", "test")
SETTINGS = {"batch_size": 8, "limit_train_examples": None, "limit_eval_examples": None, "init": "init"}


@pytest.fixture
def flowers(tmp_path):
    fill(tmp_path / "flowers", CLASSES, 12)
    return tmp_path / "flowers"


def recorded(folder):
    listing = list_folder(folder, [])
    return record_of(listing, decided(listing, []))


def again(folder, record, *, resuming=False):
    """Returns the names in each split now, and the notices."""
    notices = []
    parts = as_recorded(list_folder(folder, notices), record, notices, resuming=resuming)
    return {part: [file.name for file in files] for part, files in parts.items()}, notices


def names(record):
    return {part: list(record.sizes(part)) for part in PARTS}


def refusal(action, *arguments, **settings):
    with pytest.raises(UserError) as caught:
        action(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_record_is_read_back(flowers, tmp_path):
    record = recorded(flowers)
    kept = Run(tmp_path / "run")
    kept.write_dataset_record(record)
    assert kept.dataset_record() == record
    assert sum(map(len, names(record).values())) == 36
    assert Run(tmp_path / "none").dataset_record() is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-20],
        lambda content: b"",
        lambda content: gzip.compress(b"{}"),
        lambda content: gzip.compress(gzip.decompress(content).replace(b"000.png", b"001.png")),
        lambda content: gzip.compress(gzip.decompress(content).replace(b'"ant"', b'"ape"')),
    ],
    ids=["truncated", "empty", "another file", "another image", "another class"],
)
def test_a_damaged_record_is_detected(flowers, tmp_path, damage):
    kept = Run(tmp_path / "run")
    kept.write_dataset_record(recorded(flowers))
    kept.dataset_file.write_bytes(damage(kept.dataset_file.read_bytes()))
    assert refusal(kept.dataset_record).startswith(
        f"{kept.dataset_file}, the record of the images in each split, cannot be "
    )


def test_added_images_are_ignored_with_a_notice(flowers):
    record = recorded(flowers)
    (flowers / "ant" / "000.png").write_bytes((flowers / "ant" / "000.png").read_bytes() + b"more")
    fill(flowers, ["dog"], 5, start=7000)
    shutil.copy(flowers / "dog" / "000.png", flowers / "ant" / "new.png")
    current, notices = again(flowers, record, resuming=True)
    assert current == names(record)
    assert notices == [
        "changed since the run began: 1 image: ant/000.png",
        "ignored, because added since the run began: 6 images: ant/new.png, dog/000.png, dog/001.png and 3 more",
    ]


@pytest.mark.parametrize("resuming", [False, True])
def test_a_renamed_class_is_refused_with_both_names(flowers, resuming):
    """Labels would shift, including those of the classes after it."""
    record = recorded(flowers)
    (flowers / "ant").rename(flowers / "zebra")
    assert refusal(again, flowers, record, resuming=resuming).startswith(
        f"{flowers}: class 'ant' of the run is now called 'zebra', which would shift labels; rename it back "
    )


def test_a_new_first_class_shifts_no_label(flowers):
    record = recorded(flowers)
    fill(flowers, ["aardvark"], 5, start=7000)
    listing = list_folder(flowers, [])
    parts = as_recorded(listing, record, [], resuming=True)
    assert {file.label for files in parts.values() for file in files} == set(CLASSES)


def test_missing_training_images_stop_only_a_resume(flowers):
    record = recorded(flowers)
    gone = names(record)["train"][:5]
    for name in gone:
        (flowers / name).unlink()
    assert refusal(again, flowers, record, resuming=True).startswith(
        f"{flowers}: 5 training images of the run are missing: {gone[0]}, {gone[1]}, {gone[2]} and 2 more; restore them"
    )
    current, notices = again(flowers, record)
    assert current == names(record) | {"train": names(record)["train"][5:]}
    assert notices == [f"missing since the run began: 5 train images: {gone[0]}, {gone[1]}, {gone[2]} and 2 more"]


def test_missing_test_images_are_reported(flowers):
    record = recorded(flowers)
    gone = names(record)["test"][0]
    (flowers / gone).unlink()
    current, notices = again(flowers, record, resuming=True)
    assert current["train"] == names(record)["train"]
    assert notices == [f"missing since the run began: 1 test image: {gone}"]


def test_images_moved_to_another_class_are_ignored(flowers):
    record = recorded(flowers)
    moved = next(name for name in names(record)["test"] if name.startswith("ant/"))
    (flowers / moved).rename(flowers / "bee" / "moved.png")
    current, notices = again(flowers, record)
    assert moved not in current["test"]
    assert "bee/moved.png" not in {name for part in current.values() for name in part}
    assert len(notices) == 2


def test_a_folder_of_other_images_is_refused(flowers, tmp_path):
    record = recorded(flowers)
    fill(tmp_path / "other", ["x", "y"], 4)
    for path in (tmp_path / "other").rglob("*.png"):
        path.rename(path.with_name(f"other{path.name}"))
    assert "has none of the run's 36 images" in refusal(again, tmp_path / "other", record)


def test_decomposed_accents_are_the_same_name(tmp_path):
    """macOS decomposes accents in file names."""
    fill(tmp_path / "composed", ["d\N{LATIN SMALL LETTER O WITH DIAERESIS}g", "cat"], 6)
    fill(tmp_path / "decomposed", ["do\N{COMBINING DIAERESIS}g", "cat"], 6)
    record = recorded(tmp_path / "composed")
    if len(list_folder(tmp_path / "decomposed", []).class_names) == 2:
        notices = []
        listing = list_folder(tmp_path / "decomposed", [])
        parts = as_recorded(listing, record, notices, resuming=True)
        assert (sum(map(len, parts.values())), notices) == (12, [])


def test_a_record_may_have_no_files():
    assert Record.from_json(json.loads(json.dumps(Record(("a", "b")).to_json()))) == Record(("a", "b"))


# --- Whole runs


def train(folder, source, **changes):
    return run(folder, data__source=f"folder:{source}", **{**SETTINGS, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of one and two epochs on a folder of images, given by a relative path, from weights deleted since."""
    root = tmp_path_factory.mktemp("trained")
    fill(root / "flowers", CLASSES, 12)
    make_run(root / "init")
    with contextlib.chdir(root):
        for name, epochs in (("one", 1), ("two", 2)):
            train(root / name, "flowers", epochs=epochs)
    shutil.rmtree(root / "init")
    return root


@pytest.mark.long
def test_a_resumed_run_ignores_added_images_and_a_moved_folder(trained, tmp_path, monkeypatch, capsys):
    """The initial weights need not exist any more."""
    shutil.copytree(trained / "one", tmp_path / "run")
    shutil.copytree(trained / "flowers", tmp_path / "moved")
    fill(tmp_path / "moved", ["aardvark"], 3, start=7000)
    shutil.copy(tmp_path / "moved" / "ant" / "000.png", tmp_path / "moved" / "ant" / "new.png")
    monkeypatch.chdir(tmp_path)
    train(tmp_path / "run", "moved", epochs=2, resume=True)
    assert "ignored, because added since the run began: 4 images: " in capsys.readouterr().out
    assert_same_run(tmp_path / "run", trained / "two")


@pytest.mark.long
def test_a_relative_path_is_found_from_another_folder(trained, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained / "one", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    train(tmp_path / "run", "flowers", epochs=2, resume=True)
    said = capsys.readouterr().out
    assert f"flowers does not exist here; reading {trained / 'flowers'}, as recorded by the run" in said
    assert_same_run(tmp_path / "run", trained / "two")


@pytest.mark.long
def test_a_renamed_class_stops_a_resume_before_anything_is_written(trained, tmp_path):
    shutil.copytree(trained / "one", tmp_path / "run")
    shutil.copytree(trained / "flowers", tmp_path / "flowers")
    (tmp_path / "flowers" / "cat").rename(tmp_path / "flowers" / "aa")
    before = (tmp_path / "run" / "results.json").read_bytes()
    assert "'cat' of the run is now called 'aa'" in refusal(
        train, tmp_path / "run", tmp_path / "flowers", epochs=2, resume=True
    )
    assert (tmp_path / "run" / "results.json").read_bytes() == before
    assert state_of(tmp_path / "run").step == state_of(trained / "one").step


@pytest.mark.long
def test_test_images_that_init_was_trained_on_are_refused(trained, tmp_path):
    """The folder was divided into splits after the first run."""
    earlier = Run(trained / "one").dataset_record()
    leaked = [name for name in earlier.sizes("train") if name.endswith(("001.png", "002.png"))]
    for path in (trained / "flowers").rglob("*.png"):
        name = path.relative_to(trained / "flowers")
        target = tmp_path / "parts" / ("test" if str(name) in leaked else "train") / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    values = {"init": str(trained / "one"), "data.source": f"folder:{tmp_path / 'parts'}", "data.size": 16}
    said = refusal(read_dataset, complete(values), Console())
    assert said.startswith(f"init={trained / 'one'} was trained on {len(leaked)} test images: test/ant/00")
    assert said.endswith("allow it with --config.data.allow_overlap=True")
    allowed = read_dataset(complete(values | {"data.allow_overlap": True}), Console())
    assert any(f" was trained on {len(leaked)} test images: " in line for line in allowed.notices)


@pytest.mark.long
def test_the_same_names_in_another_folder_are_other_images(trained, tmp_path):
    fill(tmp_path / "other" / "test", CLASSES, 12, start=50_000)
    fill(tmp_path / "other" / "train", CLASSES, 12, start=60_000)
    record = recorded(tmp_path / "other")
    same_size = Record(
        record.class_names,
        record.place,
        record.root,
        {
            part: [dict.fromkeys(files, 1) for files in by_class]
            for part, by_class in Run(trained / "one").dataset_record().parts.items()
        },
    )
    assert trained_among(same_size, record) == {}
    assert trained_among(Run(trained / "one").dataset_record(), record) == {}


@pytest.mark.long
def test_a_run_without_a_record_keeps_its_splits(trained, tmp_path, monkeypatch, capsys):
    """Such a run drew its splits by seed."""
    shutil.copytree(trained / "one", tmp_path / "run")
    (tmp_path / "run" / "dataset.json.gz").unlink()
    monkeypatch.chdir(trained)
    train(tmp_path / "run", "flowers", epochs=2, resume=True)
    said = capsys.readouterr().out
    assert "chosen by the run's seed: 30 train, 3 val, 3 test" in said
    assert "the run was started by a version that did not record its images" in said


def test_the_seeded_draw_is_that_of_earlier_versions(flowers):
    from sft_jax.data.sampling import stratified

    files = list_folder(flowers, []).files
    rows = stratified(np.repeat([0, 1, 2], 12).astype(np.int32), [0.8, 0.1, 0.1], 5)
    splits = decided(list_folder(flowers, []), [], old_seed=5)
    for part, chosen in zip(PARTS, rows, strict=True):
        assert splits[part] == [files[row] for row in chosen]
