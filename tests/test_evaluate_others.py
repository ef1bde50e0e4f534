"""Tests that `python -m sft_jax.evaluate --data` evaluates all images of a source, not a random tenth."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from commands import called
from image_folders import fill
from made_run import NAMES, make_run
from prepared_sets import ImageSet

import sft_jax
from sft_jax.data.crops import PLACES
from sft_jax.data.preprocess import Preprocess
from sft_jax.evaluate import main
from sft_jax.inference.scoring import file_name
from sft_jax.models.weights import save_weights
from sft_jax.run.weights import load_run_weights

SIZE = 16


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with six classes, and the same network in a file."""
    root = tmp_path_factory.mktemp("trained")
    # Without recorded preprocessing, a file's images would be those of ImageNet, 224 px.
    preprocess = Preprocess(SIZE, "crop", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    run = make_run(root / "run", data__source="folder:flowers", preprocess=preprocess)
    save_weights(root / "tiny.safetensors", load_run_weights(run.folder))
    return run


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Returns a data directory of tensorflow_datasets."""
    directory = tmp_path_factory.mktemp("tfds")
    ImageSet(3, (SIZE, SIZE, 3)).prepare("few", directory, train=9, test=6)
    return directory


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "run")
    return type(trained)(tmp_path / "run")


def call(monkeypatch, capsys, *flags):
    """Runs the command; returns exit code, standard output and standard error."""
    return called(monkeypatch, capsys, main, "evaluate", *flags)


def expected(folder, paths):
    """Computes accuracy and mean loss with the public API, image by image."""
    classifier = sft_jax.load(folder)
    logits = np.concatenate([classifier.square_logits([classifier.preprocess.read(path)]) for path in paths])
    labels = np.array([NAMES.index(path.parent.name) for path in paths])
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.mean(logits.argmax(-1) == labels), -np.mean(logs[np.arange(len(labels)), labels])


@pytest.mark.parametrize("layout", ["classes", "one split", "all splits"])
def test_every_image_of_a_folder_is_scored_once(run, tmp_path, monkeypatch, capsys, layout):
    flowers = tmp_path / "flowers"
    parts = {"classes": [""], "one split": ["valid"], "all splits": ["train", "val", "test"]}[layout]
    for index, part in enumerate(parts):
        fill(flowers / part, NAMES, 7, start=100 * index)
    code, printed, said = call(monkeypatch, capsys, "--workdir", run.folder, "--data", f"folder:{flowers}", "--json")
    assert code == 0
    results, paths = json.loads(printed), sorted(flowers.rglob("*.png"))
    assert results["test_count"] == len(paths) == np.sum(results["confusion"])
    accuracy, loss = expected(run.folder, paths)
    assert (results["test_accuracy"], results["test_loss"]) == (pytest.approx(accuracy), pytest.approx(loss, rel=1e-5))
    assert results["class_names"] == list(NAMES)
    assert (f"all splits of {flowers} together: " in said) == (layout == "all splits")


def test_one_split_of_a_folder_can_be_evaluated(run, tmp_path, monkeypatch, capsys):
    for index, part in enumerate(("Training", "Testing")):
        fill(tmp_path / "flowers" / part, NAMES, 3 + index, start=100 * index)
    flags = ("--workdir", run.folder, "--data", f"folder:{tmp_path / 'flowers'}", "--json", "--split")
    assert json.loads(call(monkeypatch, capsys, *flags, "test")[1])["test_count"] == 4 * len(NAMES)
    code, _, said = call(monkeypatch, capsys, *flags, "val")
    assert code == 2
    assert "has no val split; drop --split to evaluate all of its images" in said


def test_the_evaluation_of_the_run_itself_is_not_changed(run, tmp_path, monkeypatch, capsys):
    fill(tmp_path / "new", NAMES, 2)
    own = {run.results_file: "results", run.folder / "evaluations" / "test_best.json": "evaluation"}
    (run.folder / "evaluations").mkdir()
    for path, text in own.items():
        path.write_text(text)
    code, printed, _ = call(monkeypatch, capsys, "--workdir", run.folder, "--data", f"folder:{tmp_path / 'new'}")
    assert code == 0
    assert {path: path.read_text() for path in own} == own
    (written,) = set((run.folder / "evaluations").iterdir()) - set(own)
    assert written.name == f"{file_name(f'folder:{tmp_path / chr(110)}ew', None)}_best.json"
    assert str(written) in printed


def test_any_source_has_a_file_name():
    assert file_name("tfds:cifar10", "train[:10%]") == "tfds%3Acifar10_train%5B%3A10%25%5D"
    long = [file_name("folder:/" + letter + "long/" * 100, None) for letter in "ab"]
    assert len(set(long)) == 2
    assert all(len(name) < 200 and "/" not in name for name in long)


def test_converted_weights_are_evaluated_without_a_run(trained, tmp_path, monkeypatch, capsys):
    weights = tmp_path / "tiny.safetensors"
    shutil.copy(trained.folder.parent / "tiny.safetensors", weights)
    fill(tmp_path / "photos", NAMES, 2)
    code, printed, _ = call(
        monkeypatch, capsys, "--weights", weights, "--data", f"folder:{tmp_path / 'photos'}", "--json"
    )
    assert code == 0
    accuracy, loss = expected(weights, sorted((tmp_path / "photos").rglob("*.png")))
    results = json.loads(printed)
    assert (results["test_accuracy"], results["test_loss"]) == (pytest.approx(accuracy), pytest.approx(loss, rel=1e-5))
    (written,) = tmp_path.glob("tiny_*.json")
    assert json.loads(written.read_text()) == results


def test_classes_are_matched_by_name(run, tmp_path, monkeypatch, capsys):
    """Some classes may be missing, and their order in the folder does not matter."""
    fill(tmp_path / "two", ("fox", "bee"), 3)
    flags = ("--workdir", run.folder, "--json", "--data")
    code, printed, said = call(monkeypatch, capsys, *flags, f"folder:{tmp_path / 'two'}")
    assert code == 0
    results = json.loads(printed)
    assert np.sum(results["confusion"], 1).tolist() == [0, 3, 0, 0, 0, 3]
    assert results["per_class_accuracy"][0] is None
    assert "has no images of 4 of the network's 6 classes: ant, cat, dög and 1 more" in said
    fill(tmp_path / "one", ("eel",), 2)
    assert json.loads(call(monkeypatch, capsys, *flags, f"folder:{tmp_path / 'one'}")[1])["test_count"] == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [("Fox", "'Fox' (the nearest is 'fox')"), ("foxes", "'foxes' (the nearest is 'fox')"), ("whale", "have: 'whale';")],
)
def test_unknown_classes_are_named_with_the_nearest_ones(run, tmp_path, monkeypatch, capsys, name, said):
    fill(tmp_path / "flowers", (*NAMES[:3], name), 2)
    code, printed, complaints = call(
        monkeypatch, capsys, "--workdir", run.folder, "--data", f"folder:{tmp_path / 'flowers'}"
    )
    assert (code, printed) == (2, "")
    assert said in complaints
    assert not (run.folder / "evaluations").exists()


def test_unlabelled_images_are_reported_and_not_scored(run, tmp_path, monkeypatch, capsys):
    fill(tmp_path / "flowers", (*NAMES, "test"), 2)
    code, printed, said = call(
        monkeypatch, capsys, "--workdir", run.folder, "--data", f"folder:{tmp_path / 'flowers'}", "--json"
    )
    assert (code, json.loads(printed)["test_count"]) == (0, 2 * len(NAMES))
    assert f"{tmp_path / 'flowers' / 'test'} ignored: it is not one of the network's classes" in said


def test_a_table_of_new_images_is_evaluated(run, tmp_path, monkeypatch, capsys):
    fill(tmp_path / "images", NAMES, 3)
    rows = [f"{name}/{number:03}.png,{name}" for name in NAMES for number in range(3)]
    (tmp_path / "new.csv").write_text("\n".join(["where,what", *rows]))
    flags = ("--workdir", run.folder, "--data", f"csv:{tmp_path / 'new.csv'}", "--json")
    keys = ("--config.data.image_key=where", "--config.data.label_key=what")
    code, printed, said = call(monkeypatch, capsys, *flags, *keys)
    assert (code, json.loads(printed)["test_count"]) == (0, 3 * len(NAMES))
    assert "files from column 'where', labels from 'what'" in said


@pytest.mark.parametrize(
    ("source", "split", "count"),
    [
        ("tfds:few", None, 15),
        ("tfds:few", "train[:4]", 4),
        ("digits:0-5", None, 1083),
        ("digits:0-2", "test", 107),
    ],
)
def test_datasets_without_files_are_evaluated(run, few, tmp_path, monkeypatch, capsys, source, split, count):
    """Evaluates one or all splits; the classes are called 0, 1, 2 etc., here also those of the network."""
    ImageSet(3, (SIZE, SIZE, 3)).prepare("few", tmp_path / "tfds", train=9, test=6)
    flags = (
        "--data",
        source,
        f"--config.data.dir={tmp_path / 'tfds'}",
        "--json",
        *(("--split", split) if split else ()),
    )
    weights = tmp_path / "numbers.safetensors"
    save_weights(weights, dataclasses.replace(load_run_weights(run.folder), class_names=tuple("012345")))
    capsys.readouterr()  # tfds says what it prepares
    code, printed, _ = call(monkeypatch, capsys, "--weights", weights, *flags)
    assert (code, json.loads(printed)["test_count"]) == (0, count)
    code, _, said = call(monkeypatch, capsys, "--workdir", run.folder, *flags)
    assert code == 2
    assert f"{source} has classes that the network does not have: '0', '1', '2'" in said


def test_images_that_the_run_was_trained_on_are_counted(run, tmp_path, monkeypatch, capsys):
    from sft_jax.data.sources.folder import list_folder
    from sft_jax.data.sources.parts import decided
    from sft_jax.data.sources.record import record_of

    fill(tmp_path / "flowers", NAMES, 12)
    listing = list_folder(tmp_path / "flowers", [])
    parts = decided(listing, [])
    run.write_dataset_record(record_of(listing, parts))
    _, _, said = call(
        monkeypatch, capsys, "--workdir", run.folder, "--data", f"folder:{tmp_path / 'flowers'}", "--json"
    )
    assert f"the run was trained on {len(parts['train'])} images of folder:{tmp_path / 'flowers'}: " in said


def test_mirror_images_are_used_if_the_run_uses_them(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", data__source="folder:flowers", evaluation__flips=True)
    fill(tmp_path / "new", NAMES, 5)
    _, printed, _ = call(monkeypatch, capsys, "--workdir", run.folder, "--data", f"folder:{tmp_path / 'new'}", "--json")
    classifier = sft_jax.load(run.folder)
    paths = sorted((tmp_path / "new").rglob("*.png"))
    images = [classifier.preprocess.read(path) for path in paths]
    both = classifier.square_logits(images) + classifier.square_logits([each[:, ::-1] for each in images])
    labels = [NAMES.index(path.parent.name) for path in paths]
    assert json.loads(printed)["test_accuracy_flips"] == np.mean(both.argmax(-1) == labels)


def test_crops_are_used_if_the_run_uses_them(tmp_path, monkeypatch, capsys):
    settings = {"data__crop_pct": 0.75, "evaluation__crops": 5, "evaluation__flips": True}
    run = make_run(tmp_path / "run", data__source="folder:flowers", **settings)
    fill(tmp_path / "new", NAMES, 5)
    _, printed, _ = call(monkeypatch, capsys, "--workdir", run.folder, "--data", f"folder:{tmp_path / 'new'}", "--json")
    classifier = sft_jax.load(run.folder)
    paths = sorted((tmp_path / "new").rglob("*.png"))
    images = jnp.stack([classifier.preprocess.read(path) for path in paths])
    inputs = [classifier.preprocess.on_device(images, place) for place in PLACES]
    logits = [np.asarray(classifier.program(view)) for each in inputs for view in (each, each[:, :, ::-1])]
    labels = [NAMES.index(path.parent.name) for path in paths]
    assert json.loads(printed)["test_accuracy_crops"] == np.mean(np.mean(logits, 0).argmax(-1) == labels)
    both = logits[0] + logits[1]
    assert json.loads(printed)["test_accuracy_flips"] == np.mean(both.argmax(-1) == labels)


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_unreadable_images_are_named(run, tmp_path, monkeypatch, capsys, content):
    fill(tmp_path / "new", NAMES, 2)
    (tmp_path / "new" / "bee" / "001.png").write_bytes(content)
    code, printed, said = call(monkeypatch, capsys, "--workdir", run.folder, "--data", f"folder:{tmp_path / 'new'}")
    assert (code, printed) == (2, "")
    assert f"{tmp_path / 'new' / 'bee' / '001.png'} cannot be read" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--weights", "tiny.safetensors"], "--weights FILE needs images to evaluate; give them with --data SOURCE"),
        (
            ["--data", "digits", "--config.data.size=8"],
            "config.data.size cannot be changed for evaluation; only data.dir, ",
        ),
        (["--data", "flowers"], "config.data.source='flowers' must be one of tfds:NAME, folder:PATH, csv:FILE"),
        (["--data", "folder:nowhere"], "data.source=folder:nowhere: no such folder"),
    ],
)
def test_wrong_usage_is_a_one_line_error(run, monkeypatch, capsys, flags, said):
    network = [] if "--weights" in flags else ["--workdir", run.folder]
    try:
        code, printed, complaints = call(monkeypatch, capsys, *network, *flags)
    except SystemExit as stopped:
        code, (printed, complaints) = stopped.code, capsys.readouterr()
    assert (code, printed) == (2, "")
    assert complaints.startswith(f"error: {said}")
    assert complaints.count("\n") == 1
