"""Tests runs that predict a number for a text: from tables to evaluation, predictions, reports and exports."""

import json

import jax
import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from sklearn import metrics
from text_runs import NAME, VARIANT, register, run_on, scored, text_config, write
from tiny_runs import StopAt, assert_same_run, one_device, rows_of

import sft_jax
from convert import bert, flax_to_onnx, flax_to_resnet
from sft_jax import export, predict
from sft_jax.config import complete, flatten
from sft_jax.data.sources.texts.columns import Keys
from sft_jax.data.sources.texts.files import list_texts
from sft_jax.errors import StoppedError, UserError
from sft_jax.evaluate import evaluate, parse
from sft_jax.inference.others import evaluate_others
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.runtime.devices import Devices
from sft_jax.training import trainer as train_module
from sft_jax.training.experiment import Experiment
from sft_jax.training.start import earlier, read_dataset

TASK = {"task": "text_regression"}
METRICS = ("test_spearman", "test_pearson", "test_mae", "test_rmse", "test_r2", "test_loss", "test_count")


@pytest.fixture(autouse=True, scope="module")
def alone():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "Devices", one_device)
        register(patch)
        patch.setitem(bert.VARIANTS, NAME, VARIANT)
        yield


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write(tmp_path_factory.mktemp("texts"), scored, "score")


@pytest.fixture(scope="module")
def made(alone, texts, tmp_path_factory):
    """Returns a run and its results.json."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, run_on(
        texts, folder, observed=True, report__explain=True, epochs=10, optimizer__learning_rate=0.004, **TASK
    )


@pytest.fixture(scope="module")
def split(made, texts):
    """Returns the test split."""
    run = Run(made[0])
    return read_dataset(run.config(), Console(mute=True), before=earlier(run)).test


@pytest.mark.long
def test_it_learns_and_reports_its_metrics(made, split):
    folder, results = made
    assert results["test_spearman"] > 0.8
    assert set(METRICS) <= results.keys()
    assert max(row["val_spearman"] for row in rows_of(folder)) == rows_of(folder)[-1]["best"]
    log = (folder / "train.log").read_text()
    assert "the number 'score': mean 3.2" in log
    assert "texts from column 'sentence', labels from 'score'" in log
    assert "test Spearman" not in log
    assert "image" not in log


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 8])
def test_metrics_are_those_of_scipy_and_scikit_learn(made, split, count):
    folder, results = made
    run = Run(folder)
    config = complete(flatten(run.config()))
    dataset = read_dataset(config, Console(mute=True), before=earlier(run))
    experiment = Experiment(config, dataset, Devices(jax.devices()[:count]))
    ours = experiment.test(*experiment.weights(run.restored("best").arrays), dataset.test)
    truth, predicted = split.targets["number"], sft_jax.load(folder).predict(split.texts)
    assert ours["test_count"] == results["test_count"] == 77
    wanted = {
        "test_spearman": stats.spearmanr(truth, predicted).statistic,
        "test_pearson": stats.pearsonr(truth, predicted).statistic,
        "test_mae": metrics.mean_absolute_error(truth, predicted),
        "test_rmse": metrics.root_mean_squared_error(truth, predicted),
        "test_r2": metrics.r2_score(truth, predicted),
    }
    for name, value in wanted.items():
        assert ours[name] == pytest.approx(value, rel=1e-3), name
        assert results[name] == pytest.approx(ours[name], rel=1e-4)


@pytest.mark.long
def test_the_commands_evaluate_it_again(texts, made):
    folder, results = made
    again, _, _ = evaluate(Run(folder), "test", "best", [], Console(mute=True))
    args, overrides = parse(["--workdir", str(folder), "--data", f"text:{texts}", "--split", "test"])
    others, task, _ = evaluate_others(args, overrides, Console(mute=True))
    for name in METRICS:
        assert again[name] == pytest.approx(results[name], rel=1e-4)
        assert others[name] == pytest.approx(results[name], rel=1e-3)
    assert task.details(others).startswith("spearman 0.")


@pytest.mark.long
def test_a_stopped_run_resumes_bit_identically(texts, tmp_path, monkeypatch):
    run_on(texts, tmp_path / "whole", epochs=3, **TASK)
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "StopRequest", lambda: StopAt(3))
        with pytest.raises(StoppedError):
            run_on(texts, tmp_path / "stopped", epochs=3, **TASK)
    run_on(texts, tmp_path / "stopped", resume=True, epochs=3, **TASK)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.long
def test_predictions_are_in_the_numbers_own_unit(made, split, monkeypatch, capsys):
    texts = [text for (text,) in split.texts[:3]]
    words = [word for text in texts for word in ("--text", text)]
    monkeypatch.setattr("sys.argv", ["predict", "--workdir", str(made[0]), "--json", *words])
    predict.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == texts
    np.testing.assert_allclose([line["value"] for line in lines], split.targets["number"][:3], atol=2)
    monkeypatch.setattr("sys.argv", ["predict", "--workdir", str(made[0]), "--top", "2", *words])
    with pytest.raises(UserError, match="--top 2 ranks classes, but the network predicts the number 'score'"):
        predict.main()


@pytest.mark.slow
def test_exports_predict_the_same(made, split, tmp_path):
    clf = sft_jax.load(made[0])
    wanted = clf.predict(split.texts)
    export.export(made[0], "best", tmp_path / "e.stablehlo")
    np.testing.assert_allclose(sft_jax.load(tmp_path / "e.stablehlo").predict(split.texts), wanted, rtol=1e-3)
    read = clf.reading.read(split.texts)
    flax_to_resnet.convert(made[0], None, tmp_path / "w.safetensors")
    reference = bert.BertReference()
    module = reference.module(NAME, 1, load_file(tmp_path / "w.safetensors"), "imagenet")
    given = reference.given(module, read.tokens, read.segments)
    with torch.no_grad():
        theirs = module(**given).logits
    np.testing.assert_allclose(theirs[:, 0], wanted, rtol=1e-3)
    flax_to_onnx.convert(made[0], None, tmp_path / "n.onnx")
    onnx = onnxruntime.InferenceSession(tmp_path / "n.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(
        onnx.run(None, {name: tensor.numpy() for name, tensor in given.items()})[0], theirs, rtol=1e-3, atol=1e-4
    )


@pytest.mark.long
def test_a_run_starts_from_another_one(texts, made, tmp_path):
    changes = {"init": str(made[0]), "optimizer__learning_rate": 0.0, "epochs": 1, "text__tokenizer": None}
    again = run_on(texts, tmp_path / "again", **changes, **TASK)
    assert again["test_mae"] == pytest.approx(made[1]["test_mae"], rel=1e-4)


@pytest.mark.long
def test_a_linear_probe_starts_from_the_solution(texts, made, tmp_path):
    changes = {"finetune__method": "head", "optimizer__learning_rate": 0.0, "epochs": 1, "text__tokenizer": None}
    results = run_on(texts, tmp_path / "run", init=str(made[0]), **changes, **TASK)
    assert results["test_spearman"] > 0.8


@pytest.mark.long
def test_the_report_shows_the_worst_errors_with_their_tokens(made):
    page = (made[0] / "report.html").read_text()
    assert "Spearman correlation" in page
    assert "integrated gradients" in page
    assert "The 25 texts whose predicted numbers are farthest" in page
    assert '<mark class="for"' in page
    assert " images" not in page
    assert "<img" not in page


def test_columns_of_numbers_are_guessed(tmp_path):
    """The columns of STS-B's table in GLUE, and of a table without names."""
    table = tmp_path / "train.tsv"
    names = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
    rows = [f'{n}\tnews\tfile{n % 2}\t2012\t{n}\tnone\tnone\ta plane {n}\tan "air plane\tis {n / 2}' for n in range(4)]
    table.write_text("\n".join([names, *rows]).replace("is ", "") + "\n")
    notices = []
    found = list_texts(table, notices, Keys(), labelling="number")
    assert found.class_names == ("score",)
    assert [(each.text, each.label) for each in found.all][:2] == [
        (("a plane 0", 'an "air plane'), 0.0),
        (("a plane 1", 'an "air plane'), 0.5),
    ]
    (tmp_path / "plain.csv").write_text("a long text of words,4.5\nanother one,3\n")
    found = list_texts(tmp_path / "plain.csv", [], Keys(), labelling="number")
    assert [each.label for each in found.all] == [4.5, 3.0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,score\na,1\nb,high\n", r"the label of a.csv:3 is 'high', not a number, which the task needs"),
        ("a.csv", "text,score\na,1\nb,nan\n", r"the label of a.csv:3 is 'nan', not a number"),
        ("a.csv", "text,topic x\na,1\nb,c\n", "cannot tell which column has the labels; name it with"),
    ],
)
def test_labels_that_are_no_numbers_are_one_line_errors(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        list_texts(tmp_path / name, [], Keys(), labelling="number")
    assert "\n" not in str(raised.value)


def test_numbers_as_classes_are_refused_with_the_task(tmp_path):
    (tmp_path / "a.csv").write_text("text,score\n" + "".join(f"text {n},{n / 7}\n" for n in range(8)))
    with pytest.raises(UserError, match="are no classes; .* or predict the number with --config.task=text_regression"):
        list_texts(tmp_path / "a.csv", [], Keys(label="score"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__per_class": 5}, "config.data.per_class=5 cannot be used with task=text_regression: examples have a"),
        ({"regularization__mixup": 0.2}, "config.regularization.mixup=0.2 cannot be used with task=text_regression"),
        ({"task": "text", "regression__loss": "huber"}, "it belongs to task=regression or task=text_regression"),
        ({"task": "classification", "text__length": 9}, "it belongs to task=text or task=text_regression"),
        (
            {"monitor": "val_accuracy"},
            "config.monitor='val_accuracy' must be one of val_spearman, val_pearson, val_mae",
        ),
    ],
)
def test_what_does_not_fit_is_a_one_line_error(texts, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run_on(texts, tmp_path / "run", **TASK | changes)


def test_texts_with_equal_numbers_are_refused(texts, tmp_path):
    write(tmp_path, lambda count, seed: [(text, "3") for text, _ in scored(count, seed)], "score")
    with pytest.raises(UserError, match="all training texts have the number 3: there is nothing to learn"):
        run_on(tmp_path, tmp_path / "run", **TASK)
    assert text_config(texts, **TASK).task == "text_regression"
