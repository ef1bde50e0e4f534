"""Texts in the files that people have, as tokens, in batches of similar lengths."""

import itertools
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import transformers
from text_runs import examples, json_lines, tokenizer

from sft_jax.data.sampling import by_length, epoch_order, eval_order
from sft_jax.data.sources.listing import Record
from sft_jax.data.sources.texts.columns import Keys
from sft_jax.data.sources.texts.files import list_texts
from sft_jax.data.sources.texts.source import buckets_of
from sft_jax.data.texts import reading as reading_module
from sft_jax.data.texts.reading import UNIT, TextReading, buckets
from sft_jax.errors import UserError
from sft_jax.models.architecture import Texts


def listed(place, notices=None, **keys):
    return list_texts(place, [] if notices is None else notices, Keys(**keys))


def pairs_of(place, **keys):
    return [(example.text, example.label, example.part) for example in listed(place, **keys).all]


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.csv", 'text,label\n"one, two",x\nthree,y\n', [("one, two", "x"), ("three", "y")]),
        ("a.csv", 'label;review\nx;"a\nb"\ny;c\n', [("a\nb", "x"), ("c", "y")]),
        (
            "a.tsv",
            'sentence\tlabel\n"so " it begins\t0\nit \'s " here\t1\n',
            [('"so " it begins', "0"), ("it 's \" here", "1")],
        ),
        ("a.tsv", "a fine film\t1\nno\t0\n", [("a fine film", "1"), ("no", "0")]),
        (
            "a.csv",
            "0,a longer text here\n1,b and so on\n0,c\n",
            [("a longer text here", "0"), ("b and so on", "1"), ("c", "0")],
        ),
        ("a.csv", "id,title,target\n7,one,x\n8,two,y\n", [("one", "x"), ("two", "y")]),
        ("a.jsonl", '{"text": "a\\u2028b", "label": 0}\n{"text": "c", "label": 1}\n', [("a\u2028b", "0"), ("c", "1")]),
        (
            "a.json",
            '[{"tweet": "a", "sentiment": "pos"}, {"tweet": "c", "sentiment": "neg"}]',
            [("a", "pos"), ("c", "neg")],
        ),
        ("a.label", "DESC:def What is it ?\nHUM:ind Who ?\n", [("What is it ?", "DESC"), ("Who ?", "HUM")]),
    ],
)
def test_files_of_one_text_a_row(tmp_path, name, content, wanted):
    (tmp_path / name).write_text(content)
    assert [(text[0], label) for text, label, _ in pairs_of(tmp_path / name)] == wanted


def test_encodings_are_said(tmp_path):
    for encoding, told in (("latin-1", 1), ("utf-16", 0), ("utf-8-sig", 0)):
        notices = []
        (tmp_path / "a.csv").write_bytes("text,label\ncafé,x\nthé,y\n".encode(encoding))
        assert [example.text[0] for example in listed(tmp_path / "a.csv", notices).all] == ["café", "thé"]
        assert sum("is not UTF-8: read as Latin-1" in line for line in notices) == told


def test_folders_with_a_file_for_each_split(tmp_path):
    for name, count in (("train.tsv", 3), ("dev.tsv", 2), ("test.tsv", 2)):
        (tmp_path / name).write_text("".join(f"text {number}\t{number % 2}\n" for number in range(count)))
    (tmp_path / "README.txt").write_text("about it")
    (tmp_path / "tokenizer.json").write_text("{}")
    notices = []
    parts = [example.part for example in listed(tmp_path, notices).all]
    assert any("skipped, because their names say no split: tokenizer.json" in line for line in notices)
    assert [parts.count(part) for part in ("train", "val", "test")] == [3, 2, 2]
    assert listed(tmp_path).all[0].name == "dev.tsv:1"
    (tmp_path / "more.tsv").write_text("text\t1\n")
    with pytest.raises(UserError, match=r"has several files, and the names of more.tsv do not say train, validation"):
        listed(tmp_path)


def test_tables_may_be_text_files(tmp_path):
    for name in ("train.txt", "test.txt"):
        (tmp_path / name).write_text("one;x\ntwo;y\n")
    assert [(each.text[0], each.part) for each in listed(tmp_path).all][:2] == [("one", "test"), ("two", "test")]


def test_folders_of_text_files(tmp_path):
    for part, label in itertools.product(("train", "test"), ("pos", "neg")):
        folder = tmp_path / part / label
        folder.mkdir(parents=True)
        (folder / "0_1.txt").write_text(f"{part}, {label}.\nSecond line.")
    (tmp_path / "train" / "unsup").mkdir()
    (tmp_path / "train" / "unsup" / "0_0.txt").write_text("unlabelled")
    notices = []
    found = listed(tmp_path, notices)
    assert found.class_names == ("neg", "pos")
    assert len(found.all) == 4
    assert any("1 file in no folder of a class skipped: train/unsup/0_0.txt" in line for line in notices)


def test_trecs_files_say_their_splits(tmp_path):
    (tmp_path / "train_5500.label").write_bytes("DESC:def What is caf\xe9 ?\nHUM:ind Who ?\n".encode("latin-1"))
    (tmp_path / "TREC_10.label").write_text("DESC:def What ?\n")
    assert sorted(example.part for example in listed(tmp_path).all) == ["test", "train", "train"]
    fine = listed(tmp_path, label="fine_label")
    assert fine.class_names == ("DESC:def", "HUM:ind")


def test_parquet_files_declare_their_classes(tmp_path):
    features = {"label": {"_type": "ClassLabel", "names": ["world", "sports", "unused"]}, "text": {"dtype": "string"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    for part, labels in (("train", [1, 0]), ("test", [0, -1])):
        table = pyarrow.table({"text": ["a", "b"], "label": labels}).replace_schema_metadata(metadata)
        pyarrow.parquet.write_table(table, tmp_path / f"{part}-00000-of-00001.parquet")
    notices = []
    found = listed(tmp_path, notices)
    assert found.class_names == ("world", "sports", "unused")
    assert [(each.label, each.part) for each in found.all] == [
        ("world", "test"),
        ("sports", "train"),
        ("world", "train"),
    ]
    assert any("1 row without a label skipped" in line for line in notices)
    assert any("classes without training texts: 'unused'" in line for line in notices)


def test_minus_one_is_a_label_among_others(tmp_path):
    file = json_lines(tmp_path, [("a", -1), ("b", 0), ("c", 1)] * 2)
    assert listed(file).class_names == ("-1", "0", "1")
    json_lines(tmp_path, [("a", 0), ("b", 1)])
    json_lines(tmp_path, [("d", -1), ("e", -1)], "test.jsonl")
    notices = []
    assert len(listed(tmp_path, notices).all) == 2
    assert any("2 rows without a label skipped" in line for line in notices)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "is empty"),
        (
            "a.csv",
            "text,label\none, two,x\nthree,y\n",
            r"line 2 has 3 cells, separated by ',', but the first row 2; enclose",
        ),
        ("a.csv", "text,label\na,x\nb,x\n", "needs texts of at least two classes; it has only 'x'"),
        ("a.csv", "text,label\na,1\nb,2\nc,3\nd,4\n", "has 4 labels for 4 texts, which are no classes; name another"),
        (
            "a.csv",
            "text,split,label\na,train,x\nb,late,y\n",
            "column 'split' must say train, validation or test, not 'late'",
        ),
        ("a.jsonl", '{"text": "a"\n', "line 1 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 is not a JSON object with a text and a label"),
        ("a.label", "no label\n", "line 1 is not of the form COARSE:fine question"),
        ("a.pdf", "x", r"texts are read from .csv, .tsv, .txt, .jsonl, .ndjson, .json, .parquet, .label files"),
        ("a.csv", "text\na\nb\n", r"cannot tell which column has the labels; name it with --config.data.label_key"),
        ("a.parquet", "text", "cannot be read as Parquet"),
        ("a.csv", "a\0b,c\n", "is no text file: it has null characters"),
    ],
)
def test_bad_files_are_one_line_errors(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        listed(tmp_path / name)
    assert "\n" not in str(raised.value)


def reading(length=12):
    return TextReading.of(tokenizer(), length, Texts(40, 0, 512))


def test_tokens_are_those_of_transformers():
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=reading()._encoder, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    texts = [text for text, _ in examples(20, 0)]
    second = [text for text, _ in examples(20, 1)]
    for given in ((texts,), (texts, second)):
        settings = {"padding": True, "return_tensors": "np", "return_token_type_ids": True}
        wanted = theirs(*given, truncation="longest_first", max_length=12, **settings)
        ours = reading().read(list(zip(*given, strict=True)))
        np.testing.assert_array_equal(ours.tokens, wanted["input_ids"])
        np.testing.assert_array_equal(ours.segments, wanted["token_type_ids"])
        np.testing.assert_array_equal(ours.lengths, wanted["attention_mask"].sum(1))
        longer = theirs(*given)["input_ids"]
        assert ours.longer.sum() == sum(len(row) > 12 for row in longer) > 0


def test_texts_are_tokenised_block_by_block(monkeypatch):
    texts = [(text,) for text, _ in examples(50, 0)]
    whole = reading().read(texts)
    monkeypatch.setattr(reading_module, "BLOCK", 7)
    for one, two in zip(whole, reading().read(texts), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_file_s_own_limit_and_padding_are_not_used():
    made = reading()._encoder
    made.enable_truncation(4)
    made.enable_padding(length=9)
    own = TextReading.of(made.to_str(), 12, Texts(40, 0, 512)).read([("good " * 8,), ("bad",)])
    assert own.lengths.tolist() == [10, 3]


def test_tokenizers_of_other_networks_are_refused():
    with pytest.raises(UserError, match="the tokenizer has 38 kinds of tokens, but the network only 20: it belongs to"):
        TextReading.of(tokenizer(), 12, Texts(20, 0, 512))
    with pytest.raises(UserError, match="the tokenizer cannot be read"):
        TextReading.of("{}", 12, Texts(20, 0, 512))


@pytest.mark.parametrize("seed", range(3))
def test_buckets_need_the_least_padding(seed):
    lengths = np.random.default_rng(seed).integers(1, 90, 50)
    found = buckets(lengths, 0)

    def padded(ends):
        return np.array(ends)[np.searchsorted(ends, lengths)].sum()

    sizes = np.unique(-(-lengths // UNIT) * UNIT)
    best = min(padded((*some, sizes[-1])) for some in itertools.combinations(sizes[:-1].tolist(), 3))
    assert padded(found) == best
    assert all(end % UNIT == 0 for end in found)
    assert buckets(np.array([3]), 0) == (UNIT,)


def test_a_bucket_is_worth_the_padding_it_saves():
    lengths = np.repeat([8, 16, 32], 100)
    assert buckets(lengths, 799) == (8, 16, 32)
    assert buckets(lengths, 800) == buckets(lengths, 3_199) == (16, 32)
    assert buckets(lengths, 3_200) == (32,)


def test_a_run_keeps_the_buckets_it_began_with():
    """Runs that recorded none had those of the least padding; texts may have become longer."""
    lengths = np.repeat([8, 16, 32], 100)
    assert buckets_of(lengths, None) == (32,)
    assert buckets_of(lengths, Record(("a", "b"))) == (8, 16, 32)
    recorded = Record.from_json(json.loads(json.dumps(Record(("a", "b"), buckets=(24, 40)).to_json())))
    assert buckets_of(lengths, recorded) == (24, 40)
    assert buckets_of(lengths + 40, recorded) == buckets_of(lengths + 40, None)


def test_batches_of_similar_lengths_have_every_row_once():
    lengths = np.random.default_rng(0).integers(1, 60, 500)
    order = epoch_order(0, 0, np.zeros(500, np.int32), 8)
    grouped = by_length(order, lengths, 0, 0)
    assert sorted(grouped.ravel()) == sorted(order.ravel())
    padded = [lengths[rows].max(1).sum() for rows in (order, grouped)]
    assert padded[1] < 0.65 * padded[0]
    assert not np.array_equal(grouped, by_length(order, lengths, 0, 1)), "other epochs, other batches"
    assert not np.array_equal(np.sort(lengths[grouped].max(1)), lengths[grouped].max(1)), "not in order of length"


def test_evaluation_in_order_of_length_has_every_row_once():
    lengths = np.array([5, 1, 9, 3, 3])
    rows, mask = eval_order(5, 2, lengths)
    assert rows[mask].tolist() == [1, 3, 4, 0, 2]
    assert mask.sum() == 5
