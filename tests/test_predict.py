"""Tests of `python -m sft_jax.predict`: files it reads, its output, and messages about unreadable files."""

import csv
import io
import json
import sys

import numpy as np
import pytest
from commands import called
from made_run import NAMES, make_run
from parquet_files import write
from PIL import Image

import sft_jax
from sft_jax.data.images import named
from sft_jax.inference.network import BATCH
from sft_jax.predict import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        "folder": make_run(folder / "folder", data__source="folder:somewhere").folder,
        "tfds": make_run(folder / "tfds").folder,
    }


@pytest.fixture
def call(monkeypatch, capsys, runs):
    def call(*words, run="folder"):
        return called(monkeypatch, capsys, main, "predict", "--workdir", runs[run], *words)

    return call


def random_pixels(seed=0, width=20, height=16):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(path, seed=0, **size):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_pixels(seed, **size)).save(path)
    return path


def answers(printed):
    return [json.loads(line) for line in printed.splitlines()]


@pytest.mark.parametrize("run", ["folder", "tfds"])
@pytest.mark.parametrize("side", [16, 40])
def test_json_has_the_predictions_of_the_classifier(tmp_path, call, runs, run, side):
    path = save(tmp_path / "a.png", width=side, height=side)
    code, printed, complaints = call("--json", "--top", 3, path, run=run)
    assert (code, complaints) == (0, "")
    (answer,) = answers(printed)
    assert list(answer) == ["file", "label", "probability", "top"]
    labels, probabilities = sft_jax.load(runs[run]).predict(random_pixels(width=side, height=side)[None], top=3)
    assert answer["file"] == str(path)
    assert [label for label, _ in answer["top"]] == labels[0].tolist()
    np.testing.assert_allclose([probability for _, probability in answer["top"]], probabilities[0], rtol=1e-4)
    assert [answer["label"], answer["probability"]] == answer["top"][0]


def test_sets_of_hugging_face_need_no_labels(tmp_path, call, monkeypatch):
    monkeypatch.setenv("SFT_JAX_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "test.parquet", range(3), labels=[-1] * 3)
    code, printed, notices = call("--json", f"hf:{tmp_path}")
    assert code == 0
    assert f"{tmp_path}: 3 images of 1 Parquet file unpacked in {tmp_path}/cache" in notices
    files = [answer["file"] for answer in answers(printed)]
    assert [file.split("/unpacked/")[1].split("/", 1)[1] for file in files] == [
        f"test/{row:08}.png" for row in range(3)
    ]


def test_folders_stdin_and_files_are_read_in_order(tmp_path, call, monkeypatch):
    wanted = [
        save(tmp_path / "tree" / name, seed) for seed, name in enumerate(["a.jpg", "b/c.PNG", "b/d.webp", "e.gif"])
    ]
    for name in (".hidden.png", ".git/x.png"):
        (tmp_path / "tree" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(b"")
    listed = save(tmp_path / "listed.png")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{listed}\n\n{tmp_path / 'tree' / 'b'}\n"))
    code, printed, complaints = call("--json", tmp_path / "tree", "-", listed)
    assert (code, complaints) == (0, "")
    assert [entry["file"] for entry in answers(printed)] == [*map(str, [*wanted, listed, wanted[1], wanted[2], listed])]
    probabilities = {entry["file"]: entry["probability"] for entry in answers(printed)}
    assert len(set(probabilities.values())) == 5, "no image is mistaken for another"


def test_broken_images_among_several_batches_are_named(tmp_path, call):
    (tmp_path / "folder").mkdir()
    for row in range(BATCH + 5):
        save(tmp_path / "folder" / f"{row:03}.png", row)
    whole = save(tmp_path / "x.png").read_bytes()
    for name, content in {"001": b"", "030": b"text", "035": whole[: len(whole) // 2]}.items():
        (tmp_path / "folder" / f"{name}.png").write_bytes(content)
    code, printed, complaints = call("--json", tmp_path / "folder", "http://host/a.png", tmp_path / "none.png")
    assert code == 2
    left = [row for row in range(BATCH + 5) if row not in (1, 30, 35)]
    predictions = answers(printed)
    assert [each["file"] for each in predictions] == [str(tmp_path / "folder" / f"{row:03}.png") for row in left]
    lines = complaints.splitlines()
    named = {*(f"{tmp_path}/folder/{name}.png" for name in ("001", "030", "035")), "http://host/a.png"}
    assert {line.split(" ")[0] for line in lines[:-1]} == named | {f"{tmp_path}/none.png"}
    assert f"{tmp_path}/none.png cannot be read: No such file or directory" in lines
    assert "http://host/a.png is a URL; download it and pass the file" in lines
    assert f"{tmp_path}/folder/030.png cannot be read: not an image, or damaged" in lines
    assert lines[-1] == f"error: unreadable inputs: 5, see above; images answered: {len(left)}"
    alone = answers(call("--json", tmp_path / "folder" / "036.png")[1])[0]
    assert alone["label"] == predictions[-1]["label"]
    np.testing.assert_allclose(alone["probability"], predictions[-1]["probability"], rtol=1e-4)


def test_exif_rotation_is_applied(tmp_path, call):
    upright = Image.fromarray(random_pixels())
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 8  # stored rotated by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "stored.png", exif=exif)
    one, other = answers(call("--json", tmp_path / "upright.png", tmp_path / "stored.png")[1])
    assert one["top"] == other["top"]


def test_the_table_is_aligned_across_batches(tmp_path, call):
    for row in range(BATCH + 2):
        save(tmp_path / "[red]" / f"{row}.png", row)
    code, printed, _ = call("--top", 2, tmp_path / "[red]")
    lines = printed.splitlines()
    assert (code, len(lines)) == (0, BATCH + 3)
    assert lines[0].split() == ["picture", "class", "sure", "next"]
    for line in lines[1:]:
        assert line.startswith(f"{tmp_path}/[red]/")
        assert line.split()[1] in NAMES
        assert line.split()[2].endswith("%")
        # The columns have the same positions in every batch.
        assert line.index(line.split()[1]) == lines[0].index("class")


def test_memory_does_not_grow_with_the_list():
    """A long list is read lazily."""
    asked = []

    def paths():
        for row in range(1000):
            asked.append(row)
            yield row

    readable = named.decoded(paths(), lambda path: path, print)
    assert next(readable) == (0, 0)
    assert len(asked) == named.AHEAD
    assert [path for path, _ in readable] == list(range(1, 1000))


def test_an_empty_folder_is_named(tmp_path, call):
    code, printed, complaints = call(tmp_path)
    assert (code, printed) == (2, "")
    assert complaints.splitlines()[0] == f"{tmp_path} contains no images"


def test_other_files_of_a_folder_are_named_with_exit_code_2(tmp_path, call):
    """With HEIC files of a phone among others, 60 of 96 files used to be skipped silently."""
    image = save(tmp_path / "a.tif")
    for name in ("b.HEIC", "c.HEIC", "notes.txt"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    code, printed, complaints = call("--json", tmp_path)
    assert (code, [answer["file"] for answer in answers(printed)]) == (2, [str(image)])
    assert complaints.splitlines() == [
        f"{tmp_path}: 3 files skipped, not readable as images: 2 .heic (e.g. {tmp_path}/b.HEIC; "
        f"pip install pillow-heif), 1 .txt (e.g. {tmp_path}/notes.txt)",
        "error: unreadable inputs: 1, see above; images answered: 1",
    ]


def test_a_csv_file_has_a_row_for_each_image(tmp_path, call, runs):
    paths = [save(tmp_path / name, seed) for seed, name in enumerate(["a.png", "ü, b.png"])]
    output = tmp_path / "new" / "answers.csv"
    code, printed, complaints = call("--top", 2, "--output", output, *paths)
    assert (code, printed, complaints) == (0, f"wrote {output}: 2 images\n", "")
    with output.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "label", "probability", "label_2", "probability_2"]
    for row, entry in zip(rows, answers(call("--json", "--top", 2, *paths)[1]), strict=True):
        assert row["file"] == entry["file"]
        assert [row["label"], row["label_2"]] == [label for label, _ in entry["top"]]
        assert [float(row["probability"]), float(row["probability_2"])] == [value for _, value in entry["top"]]
    code, _, complaints = call("--output", tmp_path / "answers.txt", *paths)
    assert (code, complaints) == (2, f"error: --output {tmp_path}/answers.txt must end in .csv\n")
    code, _, complaints = call("--output", paths[0] / "answers.csv", *paths)
    assert (code, complaints) == (2, f"error: --output {paths[0]}/answers.csv cannot be written: File exists\n")


def test_large_images_are_refused_by_name_and_allowed_by_a_flag(tmp_path, call):
    path = save(tmp_path / "a.png", width=30, height=20)
    code, _, complaints = call("--max-pixels", 599, path)
    assert code == 2
    assert complaints.splitlines()[0] == (
        f"{path} cannot be read: it has 600 pixels, more than 599; to allow more, use --config.data.max_pixels "
        "(predict: --max-pixels)"
    )
    assert call("--max-pixels", 600, path)[0] == 0


def test_warnings_of_pillow_name_the_file(tmp_path, call):
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    Image.fromarray(random_pixels()).save(tmp_path / "e.jpg", exif=exif)
    code, _, complaints = call(tmp_path / "e.jpg")
    assert code == 0
    assert complaints.startswith(f"notice: {tmp_path}/e.jpg: Corrupt EXIF data.")


def test_wrong_usage_is_refused(tmp_path, call):
    path = save(tmp_path / "a.png")
    assert call("--top", 0, path)[2] == "error: --top 0 must be 1 or more\n"
    with pytest.raises(SystemExit) as stopped:
        call("--weights", "w.safetensors", path)
    assert stopped.value.code == 2


def test_help_lists_flags_and_an_example(call, capsys):
    with pytest.raises(SystemExit) as stopped:
        call("--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for words in ("--workdir RUN", "--weights FILE", "--top N", "--json", "default: 5", "python -m sft_jax.predict"):
        assert words in text
