"""Tests of the HTML of reports and comparisons; see test_report_browser.py for browser tests."""

import html.parser
import re
import sys

import numpy as np
import pytest
from report_records import EVIL, figures_of, records, scored
from tiny_runs import run

from sft_jax.errors import UserError, run_command
from sft_jax.report import reporter
from sft_jax.report.__main__ import main, short_names
from sft_jax.report.classification import report_page
from sft_jax.report.comparison import comparison_page
from sft_jax.report.pictures import LARGEST, data_uri
from sft_jax.report.records import Records, Scored
from sft_jax.report.reporter import Reports
from sft_jax.run.folder import Run
from sft_jax.tasks.classification import Classification


class Parsed(html.parser.HTMLParser):
    """Collects tags with their attributes, and the text between them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, *names):
        return [attributes for tag, attributes in self.tags if tag in names]


def test_the_contents_of_the_page():
    evaluated = scored(10)
    page = Parsed(report_page(records(), [f"class {label}" for label in range(10)], evaluated, 1.25))
    accuracy = evaluated.summary["accuracy"]
    assert f"Test accuracy{accuracy:.2%}95% interval" in page.text
    assert "finished after 3 epochs" in page.text
    assert "at temperature 1.250" in page.text
    assert "validation accuracy 80.00%" in page.text
    assert "python -m sft_jax.main \\ --config 'my recipe.py' \\ --config.epochs=3" in page.text
    assert "jax==0.10.2" in page.text
    mistakes = [
        image for image in page.all("img") if re.match(r"test image \d+: class \d, predicted as class \d", image["alt"])
    ]
    assert len(mistakes) == len(page.all("img")) > 25
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert all(drawing["aria-label"] for drawing in page.all("svg"))
    assert len(page.all("svg")) == 3 + 1 + 2, "curves, the confusion matrix, reliability before and after"


def test_the_page_fetches_nothing():
    page = report_page(records(), list("0123456789"), scored(10), 1.0)
    parsed = Parsed(page)
    assert not parsed.all("script", "iframe", "object", "base", "form")
    assert [link["href"] for link in parsed.all("link")] == ["data:,"]
    addresses = {attributes.get(name) for _, attributes in parsed.tags for name in ("src", "href", "action", "srcset")}
    assert all(address.startswith("data:") for address in addresses - {None})
    assert "url(" not in page
    assert "@import" not in page
    policy = next(meta for meta in parsed.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")


def test_names_are_escaped():
    names = [EVIL, "</style><img src=x onerror=alert(1)>", "plain"]
    run = records(EVIL, init=EVIL)
    split = scored(3, names=[f"test/{row}{EVIL}.png" for row in range(200)])
    for page in (report_page(run, names, split, 1.0), comparison_page([run, records("b")])):
        parsed = Parsed(page)
        assert not parsed.all("script")
        assert all("onerror" not in attributes for _, attributes in parsed.tags)
        assert EVIL in parsed.text
        assert page.count("</style>") == 1


def test_mistakes_show_their_file_names():
    evaluated = scored(3, names=[f"test/cat/{row:03}.jpg" for row in range(200)])
    page = Parsed(report_page(records(), ["cat", "dog", "cow"], evaluated, 1.0))
    predicted = evaluated.outputs.argmax(-1)
    for image in page.all("img"):
        row, truth, taken = re.match(r"test/cat/(\d+)\.jpg: (\w+), predicted as (\w+) with", image["alt"]).groups()
        assert (truth, taken) == tuple(
            ("cat", "dog", "cow")[label[int(row)]] for label in (evaluated.split.labels, predicted)
        )
        assert image["title"] == image["alt"]
    assert len(set(re.findall(r"label: \w+test/cat/\d+\.jpg", page.text))) == 25


@pytest.mark.long
@pytest.mark.parametrize("classes", [1, 2, 5, 100, 1000])
def test_pages_of_any_number_of_classes(classes):
    evaluated = scored(classes, n=3000 if classes > 5 else 50)
    page = report_page(records(), [f"class {label}" for label in range(classes)], evaluated, 1.0)
    parsed = Parsed(page)
    assert ("Top-5 accuracy" in parsed.text) == (classes > 5)
    shown = min(classes, 20)
    cells = [rectangle for rectangle in parsed.all("rect") if rectangle.get("class") == "cell"]
    assert len(cells) == shown**2
    if classes > 20:
        assert f"{classes - 20} others are omitted" in parsed.text
        assert f"The 25 classes with the lowest F1 of {classes}" in parsed.text
        assert f"All {classes} classes" in parsed.text
    assert len(page) < 2_000_000
    assert len(parsed.all("img")) > 0 or classes == 1, "one class cannot be confused"


def test_a_perfect_network_has_no_mistakes_to_show():
    evaluated = scored(3)
    logits = 9 * np.eye(3, dtype=np.float32)[evaluated.split.labels]
    summary = figures_of(logits, evaluated.split.labels)
    page = Parsed(report_page(records(), list("abc"), Scored("test", evaluated.split, summary, logits), 0.05))
    assert "Most confident mistakes" not in page.text
    assert not page.all("img")
    assert "100.00%" in page.text


def test_during_training_the_report_is_on_validation_images():
    evaluated = scored(3)
    run = Records("run", records().record, records(epochs=2).rows, None)
    page = Parsed(
        report_page(run, list("abc"), Scored("validation", evaluated.split, evaluated.summary, evaluated.outputs), 1.0)
    ).text
    assert "in progress, 2 of 3 epochs done: validation metrics; no test image was used" in page
    assert "Validation accuracy" in page
    assert "Test accuracy" not in page


def test_rows_may_be_missing_or_not_finite():
    run = records()
    broken = [row | {"val_loss": float("nan"), "val_accuracy": float("nan"), "best": None} for row in run.rows]
    for rows in (broken, []):
        page = report_page(Records("run", run.record, rows, run.results), list("abc"), scored(3), 1.0)
        assert "Best epoch" not in page
        assert "nan" not in Parsed(page).text.lower().split()


def test_embedded_images_are_small():
    small, large = (data_uri(np.full((size, size, 3), 90, np.uint8)) for size in (32, 640))
    assert small.startswith("data:image/png;")
    assert large.startswith("data:image/jpeg;")
    assert len(large) < 8 * LARGEST**2 / 10


def test_the_comparison_of_runs():
    runs = [records("a"), records("b", epochs=2, seed=1, **{"optimizer.learning_rate": 0.5})]
    page = Parsed(comparison_page(runs))
    assert re.search(r"optimizer.learning_rate\s*0.001\s*0.5", page.text)
    assert "a, training" not in page.text
    described = [drawing["aria-label"] for drawing in page.all("svg")]
    assert described[1].startswith("Loss, validation, a: 1.1000 in epoch 1, 0.3667 in epoch 3; b: 1.1000 in epoch 1")
    assert len(described) == 5


def test_compared_runs_have_short_names(tmp_path):
    folders = [tmp_path / "x" / "run", tmp_path / "y" / "run"]
    assert list(short_names(folders).values()) == ["x/run", "y/run"]
    assert list(short_names([tmp_path / "x", tmp_path / "y"]).values()) == ["x", "y"]
    with pytest.raises(UserError, match="got the same run twice"):
        short_names([tmp_path / "x", tmp_path / "x" / ".." / "x"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reporter, "REPORT_FRACTION", 1e9)  # a report at every best epoch
        written = []
        patch.setattr(Reports, "write", recording(Reports.write, written))
        folder = tmp_path_factory.mktemp("runs") / EVIL.replace("/", "")
        run(folder, observed=True)
        yield folder, written


def recording(write, written):
    def recorded(self, *arguments, **more):
        page = write(self, *arguments, **more)
        written.append(Parsed(page.read_text()).text)
        return page

    return recorded


def test_a_run_writes_its_report(finished):
    folder, written = finished
    rows = Run(folder).rows()
    bests = sum(row["best"] == row["val_accuracy"] for row in rows)
    assert len(written) == bests + 1
    for text in written[:-1]:
        assert "no test image was used" in text
    assert f"{Run(folder).results()['test_accuracy']:.2%}" in written[-1]
    assert "finished after 2 epochs" in written[-1]
    assert (folder / "tensorboard").is_dir()


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    return run_command(main)


def test_the_command_writes_the_same_report(finished, monkeypatch, capsys):
    folder, written = finished
    page = folder / "report.html"
    page.unlink()
    assert command(monkeypatch, "--workdir", folder) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"report     {page}"
    without_date = [re.sub("Written by .*", "", text) for text in (Parsed(page.read_text()).text, written[-1])]
    assert without_date[0] == without_date[1]


def test_the_command_compares_runs(finished, tmp_path, monkeypatch, capsys):
    folder, _ = finished
    page = tmp_path / "both.html"
    (tmp_path / "other").mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / "other" / name).write_bytes((folder / name).read_bytes())
    assert command(monkeypatch, "--compare", folder, tmp_path / "other", "--output", page) == 0
    assert EVIL.replace("/", "") in Parsed(page.read_text()).text
    assert command(monkeypatch, "--compare", tmp_path / "nothing") == 2
    assert "contains no run" in capsys.readouterr().err


@pytest.mark.long
def test_a_report_that_fails_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise RuntimeError("out of paint\nand more")

    monkeypatch.setitem(reporter.PAGES, Classification, fails)
    folder = tmp_path / "run"
    results = run(folder, observed=True)
    assert Run(folder).results() == results
    assert not (folder / "report.html").exists()
    lines = [line for line in capsys.readouterr().out.splitlines() if "report could not" in line]
    assert set(lines) == {
        f"notice: the report could not be written: RuntimeError: out of paint; after the run, try "
        f"python -m sft_jax.report --workdir {folder}"
    }
