"""Tests runs on texts: from tables to evaluation, predictions, explanations and exports."""

import contextlib
import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from sklearn import metrics
from text_runs import BAD, GOOD, MODERN, NAME, VARIANT, WORDS, register, run_on, text_config, tokenizer, write
from tiny_runs import StopAt, assert_same_run, one_device, rows_of

import sft_jax
from convert import flax_to_onnx, flax_to_resnet
from convert.families import reference_of
from sft_jax import export, predict
from sft_jax.config import complete, flatten
from sft_jax.data import loader as loader_module
from sft_jax.data.sources.texts import source as text_source
from sft_jax.doctor import ahead, planned
from sft_jax.doctor.finding import Report
from sft_jax.errors import StoppedError, UserError
from sft_jax.evaluate import evaluate, parse
from sft_jax.inference.attribution import attributions
from sft_jax.inference.others import evaluate_others
from sft_jax.models import Network, builder, initial_arrays
from sft_jax.models.architecture import Builder
from sft_jax.models.weights import Weights, save_weights
from sft_jax.report.__main__ import rewrite
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.runtime.devices import AbsentDevices, Devices
from sft_jax.search import session
from sft_jax.search.session import Options, search
from sft_jax.search.space import Space
from sft_jax.training import trainer as train_module
from sft_jax.training.experiment import Experiment
from sft_jax.training.lr_find import find_learning_rate
from sft_jax.training.start import earlier, read_dataset


@pytest.fixture(autouse=True, scope="module")
def alone():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "Devices", one_device)
        register(patch)
        yield


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write(tmp_path_factory.mktemp("texts"))


@pytest.fixture
def several_lengths(monkeypatch):
    """Makes a run pad batches to three lengths, for which it has too few texts."""
    monkeypatch.setattr(text_source, "WORTH", 0)


@pytest.fixture(scope="module")
def made(alone, texts, tmp_path_factory):
    """Returns a run with batches of three lengths, which it records, and its results.json."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_source, "WORTH", 0)
        return folder, run_on(texts, folder, observed=True, report__explain=True, regularization__dropout=0.1)


@pytest.fixture(scope="module", params=[NAME, MODERN])
def each(request, made, texts, tmp_path_factory):
    """Returns a run of one of the networks, and its results.json."""
    if request.param == NAME:
        return made
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, run_on(texts, folder, model__name=request.param, regularization__dropout=0.1)


def restored(folder, count=1, placement="auto"):
    run = Run(folder)
    config = complete(flatten(run.config()) | {"data.placement": placement})
    dataset = read_dataset(config, Console(mute=True), before=earlier(run))
    experiment = Experiment(config, dataset, Devices(jax.devices()[:count]))
    return experiment, experiment.weights(run.restored("best").arrays)


def test_it_learns_and_reports_its_metrics(each, made):
    folder, results = each
    assert results["test_accuracy"] > 0.9
    assert results["class_names"] == ["negative", "positive"]
    assert {"test_matthews", "test_macro_f1", "test_loss", "test_top5", "confusion"} <= results.keys()
    assert "val_matthews" in rows_of(folder)[0]
    log = (folder / "train.log").read_text()
    assert "203 / 61 / 77 train / validation / test texts, 2 classes" in log
    assert f"model      {Run(folder).config().model.name} at up to 24 tokens" in log
    padded = "8, 16 or 24" if folder == made[0] else "24"
    assert f"texts      batches of similar lengths, padded to {padded} tokens" in log
    assert restored(folder)[0].dataset.train.lengths.buckets[0] == int(padded.split(",")[0])
    assert "11 training texts per epoch" in log
    assert " texts/s  " in log
    assert "image" not in log


@pytest.mark.long
@pytest.mark.parametrize(("count", "placement"), [(1, "auto"), (8, "replicated"), (8, "sharded"), (8, "streamed")])
def test_evaluation_is_exact_on_any_number_of_devices(made, monkeypatch, count, placement):
    folder, results = made
    if placement == "streamed":
        monkeypatch.setattr(loader_module, "RESIDENT_FRACTION", 0.0)
        placement = "auto"
    experiment, weights = restored(folder, count, placement)
    ours, split = experiment.test(*weights), experiment.dataset.test
    outputs = sft_jax.load(folder).logits(split.texts)
    truth, predicted = split.labels, outputs.argmax(1)
    assert ours["test_count"] == 77
    assert ours["test_accuracy"] == results["test_accuracy"] == metrics.accuracy_score(truth, predicted)
    assert ours["confusion"] == metrics.confusion_matrix(truth, predicted).tolist()
    assert ours["test_matthews"] == pytest.approx(metrics.matthews_corrcoef(truth, predicted), rel=1e-6)
    assert ours["test_loss"] == pytest.approx(metrics.log_loss(truth, np.asarray(jax.nn.softmax(outputs))), rel=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("placement", ["replicated", "sharded"])
def test_devices_do_not_change_the_training(texts, tmp_path, monkeypatch, placement):
    """Dropout included: what it drops depends on an example's place in the batch alone."""
    rates = {"regularization__dropout": 0.2, "regularization__attention_dropout": 0.2}
    changes = {"epochs": 1, **rates, "data__placement": placement, "text__length": 16}
    run_on(texts, tmp_path / "one", **changes)
    monkeypatch.setattr(train_module, "Devices", lambda: Devices(jax.devices()[:8]))
    run_on(texts, tmp_path / "eight", **changes)
    one, eight = (rows_of(tmp_path / name)[0] for name in ("one", "eight"))
    for name in ("train_loss", "val_loss"):
        assert eight[name] == pytest.approx(one[name], rel=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "worth"),
    [("full", 0), ("head_then_full", 10_000), pytest.param("gradual", 10_000, marks=pytest.mark.slow)],
)
def test_a_stopped_run_resumes_bit_identically(texts, tmp_path, monkeypatch, method, worth):
    """Batches of three lengths, of which the resumed run would make one, or of one, to compile each phase once."""
    changes = {"finetune__method": method, "finetune__head_epochs": 1, "regularization__dropout": 0.1}
    monkeypatch.setattr(text_source, "WORTH", worth)
    run_on(texts, tmp_path / "whole", **changes)
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "StopRequest", lambda: StopAt(3))
        with pytest.raises(StoppedError):
            run_on(texts, tmp_path / "stopped", **changes)
    monkeypatch.setattr(text_source, "WORTH", 10_000)
    run_on(texts, tmp_path / "stopped", resume=True, **changes)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_changed_texts_are_not_resumed(texts, made, tmp_path, monkeypatch):
    own = write(tmp_path / "own")
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "StopRequest", lambda: StopAt(3))
        with pytest.raises(StoppedError):
            run_on(own, tmp_path / "run")
    (own / "dev.tsv").write_text((own / "dev.tsv").read_text().replace("good", "bad", 1))
    with pytest.raises(UserError, match="the val texts or labels are not those with which the run began; restore"):
        run_on(own, tmp_path / "run", resume=True)


@pytest.mark.long
def test_the_tokenizer_is_in_the_run(texts, tmp_path, monkeypatch):
    own = write(tmp_path / "own")
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "StopRequest", lambda: StopAt(3))
        with pytest.raises(StoppedError):
            run_on(own, tmp_path / "run", text__tokenizer=str(own / "tokenizer.json"))
    (own / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"config.text.tokenizer=.* cannot be read"):
        run_on(own, tmp_path / "other")
    run_on(own, tmp_path / "run", resume=True)
    assert sft_jax.load(tmp_path / "run").reading.tokenizer == tokenizer()


@pytest.mark.long
def test_the_commands_evaluate_it_again(texts, made):
    folder, results = made
    again, _, _ = evaluate(Run(folder), "test", "best", [], Console(mute=True))
    args, overrides = parse(["--workdir", str(folder), "--data", f"text:{texts}", "--split", "test"])
    others, task, _ = evaluate_others(args, overrides, Console(mute=True))
    for name in ("test_accuracy", "test_count", "confusion", "test_matthews"):
        assert again[name] == others[name] == results[name]
    assert "on 77 texts" in task.details(others)
    args, overrides = parse(["--workdir", str(folder), "--data", f"text:{texts}"])
    assert evaluate_others(args, overrides, Console(mute=True))[0]["test_count"] == 203 + 61 + 77


def answers(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["predict", *map(str, arguments)])
    capsys.readouterr()
    with contextlib.suppress(UserError):
        predict.main()
    return capsys.readouterr()


def test_predictions(made, tmp_path, monkeypatch, capsys):
    folder, _ = made
    table = tmp_path / "new.csv"
    table.write_text('id,review\n1,"a good, fine word1"\n2,"dull\nword3"\n')
    printed = answers(monkeypatch, capsys, "--workdir", folder, "--json", "--text", f"word1 {GOOD[0]}", table)
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [line["file"] for line in lines] == ["text 1", f"{table}:2", f"{table}:3"]
    assert [line["label"] for line in lines] == ["positive", "positive", "negative"]
    assert lines[1]["text"] == "a good, fine word1"
    assert "texts from column 'review'" in printed.err
    clf = sft_jax.load(folder)
    labels, chances = clf.predict([line["text"] for line in lines])
    assert labels[:, 0].tolist() == [line["label"] for line in lines]
    np.testing.assert_allclose(chances[:, 0], [line["probability"] for line in lines], rtol=1e-5)
    printed = answers(monkeypatch, capsys, "--workdir", folder, "--output", tmp_path / "p.csv", table, "missing.csv")
    rows = (tmp_path / "p.csv").read_text().splitlines()
    assert rows[0] == "file,text,label,probability,label_2,probability_2"
    assert "missing.csv: no such file; a text itself is given with --text" in printed.err
    printed = answers(monkeypatch, capsys, "--workdir", folder, "--text", "word " * 40)
    assert printed.out.splitlines()[0].split() == ["text", "class", "sure", "next"]
    assert "…" in printed.out
    (tmp_path / "lines.txt").write_text(f"{BAD[0]}\n\n{GOOD[1]} word2\n")
    printed = answers(monkeypatch, capsys, "--workdir", folder, "--json", tmp_path / "lines.txt")
    assert [json.loads(line)["label"] for line in printed.out.splitlines()] == ["negative", "positive"]
    assert "1 empty texts skipped" in printed.err


def test_flags_of_images_are_refused(made, whole, tmp_path, monkeypatch):
    for arguments, message in (
        ((made[0], "--text", "a", "--max-pixels", "9"), "--max-pixels is for networks of images, but .* takes texts"),
        ((whole[0], "--text", "a"), "--text and --columns are for networks of texts, but .* takes images"),
    ):
        monkeypatch.setattr("sys.argv", ["predict", "--workdir", *map(str, arguments)])
        with pytest.raises(UserError, match=message):
            predict.main()


@pytest.mark.long
def test_predictions_are_explained(each, tmp_path, monkeypatch, capsys):
    """The words that decide contribute most; each text has its own page entry, whatever the texts beside it."""
    folder, why = each[0], tmp_path / "why"
    texts = [f"word1 {GOOD[0]} word2", BAD[1], " ".join([*WORDS[4:14], BAD[0], *WORDS[14:18]])]
    flags = [flag for text in texts for flag in ("--text", text)]
    printed = answers(monkeypatch, capsys, "--workdir", folder, "--json", "--explain", why, *flags)
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [line["label"] for line in lines] == ["positive", "negative", "negative"]
    for line, text, word in zip(lines, texts, (GOOD[0], BAD[1], BAD[0]), strict=True):
        assert "".join(part for part, _ in line["contributions"]) == text
        assert max(line["contributions"], key=lambda part: part[1]) == [word, 1.0]
        assert line["explanation"] == str(why / "texts_000001.html")
    (page,) = why.iterdir()
    assert re.findall(r'--weight: 1.00" title="\+1.00">([^<]+)<', page.read_text()) == [GOOD[0], BAD[1], BAD[0]]
    printed = answers(monkeypatch, capsys, "--workdir", folder, "--explain", tmp_path / "some", "--text", "<b>good</b>")
    assert "&lt;" in (tmp_path / "some" / "texts_000001.html").read_text()
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["predict", "--workdir", str(folder), "--text=a", f"--explain={tmp_path / 'file'}"])
    with pytest.raises(UserError, match="file/texts_000001.html cannot be written: "):
        predict.main()


def test_any_batch_and_padding_give_the_same_logits(each):
    clf, split = sft_jax.load(each[0]), restored(each[0])[0].dataset.test
    whole = clf.logits(split.texts)
    alone = np.concatenate([clf.logits(text) for text in split.texts[:5]])
    np.testing.assert_allclose(alone, whole[:5], rtol=1e-4, atol=1e-5)
    assert clf.features(split.texts[:3]).shape == (3, VARIANT.width)
    assert clf.logits([]).shape == (0, 2)
    with pytest.raises(TypeError, match="a text must be a string or a pair of strings, not"):
        clf.logits([3])


@pytest.mark.long
def test_exports_predict_the_same(each, tmp_path):
    clf, split = sft_jax.load(each[0]), restored(each[0])[0].dataset.test
    export.export(each[0], "best", tmp_path / "e.stablehlo")
    exported = sft_jax.load(tmp_path / "e.stablehlo")
    np.testing.assert_allclose(exported.logits(split.texts), clf.logits(split.texts), rtol=1e-4, atol=1e-4)
    assert exported.learnt == clf.learnt
    assert exported.class_names == clf.class_names
    with pytest.raises(UserError, match="an export gives logits but no features"):
        exported.features("good")
    with pytest.raises(UserError, match="an export cannot be explained; name the run or the converted file"):
        exported.explain("good", np.array([0]))


@pytest.mark.long
def test_torch_and_onnx_predict_the_same(each, tmp_path, capsys):
    clf, split = sft_jax.load(each[0]), restored(each[0])[0].dataset.test
    read, name = clf.reading.read(split.texts), Run(each[0]).config().model.name
    flax_to_resnet.convert(each[0], None, tmp_path / "w.safetensors")
    assert tokenizer() not in capsys.readouterr().out
    module = reference_of(name).module(name, 2, load_file(tmp_path / "w.safetensors"), "imagenet")
    given = reference_of(name).given(module, read.tokens, read.segments)
    with torch.no_grad():
        theirs = module(**given).logits
    np.testing.assert_allclose(theirs, clf.logits(split.texts), rtol=1e-4, atol=1e-4)
    flax_to_onnx.convert(each[0], None, tmp_path / "n.onnx")
    onnx = onnxruntime.InferenceSession(tmp_path / "n.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(
        onnx.run(None, {name: tensor.numpy() for name, tensor in given.items()})[0], theirs, rtol=1e-4, atol=1e-4
    )
    metadata = onnx.get_modelmeta().custom_metadata_map
    assert metadata["tokenizer"] == tokenizer()
    assert json.loads(metadata["learnt"]) == {"length": 24}
    assert json.loads(metadata["class_names"]) == ["negative", "positive"]


@pytest.mark.long
def test_a_run_starts_from_another_one(texts, made, tmp_path):
    changes = {"init": str(made[0]), "optimizer__learning_rate": 0.0, "epochs": 1, "text__tokenizer": None}
    again = run_on(texts, tmp_path / "again", **changes)
    assert f"weights of {made[0]} with its head" in (tmp_path / "again" / "train.log").read_text()
    assert again["test_accuracy"] == made[1]["test_accuracy"]


@pytest.mark.long
def test_a_linear_probe_starts_from_the_solution(texts, made, tmp_path):
    changes = {"finetune__method": "head", "optimizer__learning_rate": 0.0, "epochs": 1, "text__tokenizer": None}
    assert run_on(texts, tmp_path / "run", init=str(made[0]), **changes)["test_accuracy"] > 0.9


@pytest.mark.long
def test_converted_weights_bring_their_tokenizer(texts, tmp_path):
    params, _ = initial_arrays(Builder(text_network().architecture, 3), 0)
    body = {name: np.asarray(array) for name, array in params.items() if not name.startswith("classifier.")}
    save_weights(tmp_path / "w.safetensors", Weights(body, NAME, None, {"tokenizer": tokenizer()}))
    changes = {"init": str(tmp_path / "w.safetensors"), "epochs": 1}
    run_on(texts, tmp_path / "run", text__tokenizer=None, **changes)
    assert "with a new head\n" in (tmp_path / "run" / "train.log").read_text()
    other = tmp_path / "other.json"
    other.write_text(tokenizer().replace("word29", "wordX"))
    with pytest.raises(UserError, match="is not the tokenizer with which the weights of init=.* were trained; leave"):
        run_on(texts, tmp_path / "x", text__tokenizer=str(other), **changes)


def text_network():
    return Network.abstract(builder(complete({"model.name": NAME}).model, 2))


@pytest.mark.long
def test_attributions_add_up_to_the_difference_from_the_baseline(each):
    clf, (experiment, _) = sft_jax.load(each[0]), restored(each[0])
    split = experiment.dataset.test.take(np.arange(6))
    read = clf.reading.read(split.texts)
    special = np.isin(read.tokens, (2, 3))
    baseline = np.where(special, read.tokens, clf.reading.padding)
    outputs = np.array([0, 1, 0, 1, 0, 1], np.int32)
    found = attributions(clf.model, *map(jnp.asarray, (read.tokens, read.segments, baseline, outputs)))

    def logits(words):
        model = clf.model
        return model.head(model.features(read.tokens, read.segments, words=model.embed(words)).pooled)

    rows = np.arange(6)
    wanted = (logits(read.tokens) - logits(baseline))[rows, outputs]
    np.testing.assert_allclose(found.sum(1), wanted, rtol=0.03, atol=0.03)
    assert np.abs(found[special]).max() == 0


@pytest.mark.long
def test_the_report_marks_what_decides(made):
    folder, _ = made
    page = (folder / "report.html").read_text()
    assert "integrated gradients" in page
    assert '<mark class="for"' in page
    assert "77 texts" in page
    assert "<img" not in page
    rewrite(folder, folder / "again.html", explain=True)
    assert (folder / "again.html").read_text().count("<mark") == page.count("<mark")


@pytest.mark.slow
def test_settings_are_searched(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "Devices", one_device)
    options = Options(trials=2, folds=2, sampler="grid", pruner="none", at_once=None, resume=False, command=["test"])
    space = Space(["optimizer.learning_rate=choice(1e-7,0.002)"])
    winner = search(text_config(texts, text__length=16), space, tmp_path, options, Console())
    assert winner.point == {"optimizer.learning_rate": "0.002"}


def test_a_learning_rate_is_found(texts, tmp_path, monkeypatch):
    monkeypatch.setattr("sft_jax.training.lr_find.Devices", one_device)
    result = find_learning_rate(text_config(texts), Run(tmp_path), Console(mute=True))
    assert result.losses[-1] != result.losses[0]


@pytest.mark.slow
def test_the_doctor_compiles_and_times_it(texts, several_lengths, monkeypatch):
    monkeypatch.setattr(ahead, "absent_devices", lambda name: AbsentDevices(jax.devices()[:1], 1 << 30))
    monkeypatch.setattr(planned, "Devices", one_device)
    report = Report(lambda line: None)
    planned.add_plan(text_config(texts), (32,), report, Console(mute=True))
    assert [(cost.size, cost.unit) for cost in report.costs] == [(8, "tokens"), (16, "tokens"), (24, "tokens")]
    assert all(cost.gflop > 0 and cost.step_ms > 0 for cost in report.costs)
    found = ahead.examine(text_config(texts), "tpu-v5e-1", [], lambda line: None)
    assert found["compiles"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data__source": "digits"},
            "config.data.source=digits has images, but the task needs texts; use tfds:NAME, text",
        ),
        (
            {"task": "classification", "text__length": 128, "text__tokenizer": None},
            "has texts, for --config.task=text or text_regression",
        ),
        ({"model__name": "resnet18"}, "model.name=resnet18 takes images, which task=text does not have"),
        ({"regularization__mixup": 0.2}, "config.regularization.mixup=0.2 cannot be used with task=text: tokens"),
        ({"data__flip": False}, "config.data.flip=False cannot be used with task=text: texts are no images"),
        ({"evaluation__crops": 5}, "config.evaluation.crops=5 cannot be used with task=text"),
        ({"text__length": 513}, "config.text.length=513: the network takes at most 512 tokens"),
        ({"text__tokenizer": None}, "init=scratch has no tokenizer; name the tokenizer.json of texts_of_test with"),
        ({"text__columns": "review"}, "has no column 'review'; its columns are 'sentence', 'label'"),
        ({"monitor": "val_map"}, "config.monitor='val_map' must be one of val_accuracy, .*, val_matthews, or none"),
    ],
)
def test_what_does_not_fit_is_a_one_line_error(texts, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as raised:
        run_on(texts, tmp_path / "run", **changes)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run" / "config.json").exists()


def test_networks_of_texts_need_their_task(tmp_path):
    config = complete({"model.name": NAME, "init": "scratch", "data.source": "digits", "epochs": 1})
    with pytest.raises(UserError, match=f"model.name={NAME} takes texts, which task=classification does not have"):
        Experiment(config, read_dataset(config, Console(mute=True)), one_device())
    with pytest.raises(UserError, match=r"config.regularization.dropout=0.1: resnet18 has no dropout; use 0"):
        builder(complete({}).model, 2, dropout=0.1)
    with pytest.raises(UserError, match=r"config.regularization.attention_dropout=0.1: resnet18 has no dropout; use 0"):
        builder(complete({}).model, 2, attention_dropout=0.1)


def test_pairs_are_told_apart(texts, tmp_path):
    for part in ("train", "dev", "test"):
        lines = (texts / f"{part}.tsv").read_text().splitlines()[1:]
        pairs = ["premise\thypothesis\tlabel", *(line.replace("\t", "\tword1 word2\t") for line in lines)]
        (tmp_path / f"{part}.tsv").write_text("\n".join(pairs))
    (tmp_path / "tokenizer.json").write_text(tokenizer())
    dataset = read_dataset(text_config(tmp_path), Console(mute=True))
    assert any("texts from column 'premise' and 'hypothesis'" in line for line in dataset.notices)
    first = dataset.train.inputs["segments"][0, : dataset.train.lengths.each[0]]
    assert first.tolist() == sorted(first.tolist())
    assert first.sum() == 3  # two words and a separator
    assert dataclasses.replace(dataset.train).texts[0][1] == "word1 word2"
