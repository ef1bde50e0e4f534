"""Tests runs on several labels per image and on numbers: from a table to predictions and exports."""

import contextlib
import json

import jax
import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from made_run import make_run
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn import metrics
from table_runs import LABELS, numbers, run_on, several
from tiny_runs import StopAt, assert_same_run, one_device, rows_of, state_of

import sft_jax
from convert import flax_to_onnx, flax_to_resnet
from sft_jax import export, predict
from sft_jax.config import complete, flatten
from sft_jax.doctor import ahead, planned
from sft_jax.doctor.finding import Report
from sft_jax.errors import StoppedError, UserError
from sft_jax.evaluate import evaluate, parse
from sft_jax.inference.others import evaluate_others
from sft_jax.report.__main__ import rewrite
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.runtime.devices import AbsentDevices, Devices
from sft_jax.search import session
from sft_jax.search.session import Options, search
from sft_jax.search.space import Space
from sft_jax.training import trainer as train_module
from sft_jax.training.experiment import Experiment
from sft_jax.training.start import earlier, read_dataset

TASKS = ("multilabel", "regression")
MAKE = {"multilabel": several, "regression": numbers}
# The main metric of each, and its monitor's best value among epochs.
MAIN = {"multilabel": ("map", max), "regression": ("mae", min)}


@pytest.fixture(autouse=True, scope="module")
def alone():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "Devices", one_device)
        yield


@pytest.fixture(scope="module")
def runs(alone, tmp_path_factory):
    """Returns for each task its table, its run and results.json."""
    base = tmp_path_factory.mktemp("labels")
    made = {}
    for task in TASKS:
        table, folder = MAKE[task](base / task), base / f"run_{task}"
        made[task] = table, folder, run_on(table, folder, task, observed=True, evaluation__flips=True)
    return made


@pytest.fixture
def printed(capsys, monkeypatch):
    """Returns the JSON lines that a command prints."""

    def call(module, *arguments):
        monkeypatch.setattr("sys.argv", ["command", *map(str, arguments)])
        capsys.readouterr()
        module.main()
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return call


def restored(folder, count=1, placement="auto"):
    """Returns the run's experiment as its best checkpoint has it, and its weights on `count` devices."""
    run = Run(folder)
    config = complete(flatten(run.config()) | {"data.placement": placement})
    dataset = read_dataset(config, Console(mute=True), before=earlier(run))
    best = run.restored("best")
    experiment = Experiment(config, dataset, Devices(jax.devices()[:count]))
    experiment = experiment.as_learnt(best.metadata["progress"]["learnt"])
    return experiment, experiment.weights(best.arrays)


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_a_run_reports_its_metrics_and_keeps_the_best_epoch(runs, task):
    _, folder, results = runs[task]
    figure, best = MAIN[task]
    rows = rows_of(folder)
    assert results[f"best_val_{figure}"] == best(row[f"val_{figure}"] for row in rows) == rows[-1]["best"]
    wanted = {
        "multilabel": {"test_map", "test_macro_f1", "test_micro_f1", "thresholds", "class_names", "test_map_flips"},
        "regression": {"test_mae", "test_rmse", "test_r2", "test_mae_flips"},
    }[task]
    assert wanted | {"test_loss", "test_count"} <= results.keys()
    assert not [name for name in {*rows[0], *results} if "accuracy" in name]
    log = (folder / "train.log").read_text()
    said = {"multilabel": "3 labels, any number of them per image", "regression": "the number 'age': mean "}[task]
    assert said in log
    assert {"multilabel": "test mAP ", "regression": "test mae "}[task] in log


@pytest.mark.long
def test_thresholds_are_those_of_the_best_epochs_validation(runs):
    _, folder, results = runs["multilabel"]
    experiment, weights = restored(folder)
    fresh = experiment.task.with_learnt({})
    assert fresh.thresholds == (0.5, 0.5, 0.5)
    learning = Experiment(experiment.config, experiment.dataset, experiment.devices)
    figures = learning.task.summarize(learning.evaluate(*weights, learning.validation_loader))
    np.testing.assert_allclose(results["thresholds"], figures["thresholds"], rtol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize(("count", "placement"), [(1, "auto"), (8, "replicated"), (8, "sharded")])
@pytest.mark.parametrize("task", TASKS)
def test_evaluation_is_exact_on_any_number_of_devices(runs, task, count, placement):
    _, folder, results = runs[task]
    experiment, weights = restored(folder, count, placement)
    ours = experiment.test(*weights)
    split = experiment.dataset.test
    outputs = np.asarray(sft_jax.load(folder).logits(split.images), np.float64)
    if task == "multilabel":
        truth = split.targets["labels"]
        wanted = {"map": metrics.average_precision_score(truth, outputs, average="macro")}
    else:
        truth = split.targets["number"]
        wanted = {
            "mae": metrics.mean_absolute_error(truth, outputs),
            "rmse": metrics.root_mean_squared_error(truth, outputs),
            "r2": metrics.r2_score(truth, outputs),
        }
    assert ours["test_count"] == results["test_count"] == len(split)
    for name, value in wanted.items():
        assert ours[f"test_{name}"] == pytest.approx(value, rel=1e-4)
        assert results[f"test_{name}"] == pytest.approx(value, rel=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_the_commands_evaluate_it_again(runs, task):
    table, folder, results = runs[task]
    again, _, _ = evaluate(Run(folder), "test", "best", [], Console(mute=True))
    args, overrides = parse(["--workdir", str(folder), "--data", f"csv:{table}"])
    every, made, _ = evaluate_others(args, overrides, Console(mute=True))
    assert again.keys() == every.keys() == results.keys()
    for name, value in results.items():
        if name == "class_names":
            assert again[name] == value
        elif name != "seconds":
            assert again[name] == pytest.approx(value, rel=1e-5), name
    assert every["test_count"] == 140
    assert MAIN[task][0] in type(made).details(every).lower()
    # All images are those of the three splits, each once.
    parts = [evaluate(Run(folder), part, "best", [], Console(mute=True))[0] for part in ("train", "validation", "test")]
    total = sum(part["test_loss"] * part["test_count"] for part in parts)
    assert every["test_loss"] == pytest.approx(total / 140, rel=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(
    ("task", "method"),
    [
        ("multilabel", "full"),
        ("regression", "head_then_full"),
        pytest.param("multilabel", "head_then_full", marks=pytest.mark.slow),
        pytest.param("regression", "full", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_resumes_bit_identically(tmp_path, monkeypatch, runs, task, method):
    table, changes = runs[task][0], {"finetune__method": method, "regularization__ema": 0.9}
    changes |= {"regularization__mixup": 0.5} if method == "full" else {"finetune__head_epochs": 1}
    run_on(table, tmp_path / "whole", task, **changes)
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "StopRequest", lambda: StopAt(3))
        with pytest.raises(StoppedError):
            run_on(table, tmp_path / "stopped", task, **changes)
    run_on(table, tmp_path / "stopped", task, resume=True, **changes)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "stopped"))
    assert one | {"seconds": 0} == two | {"seconds": 0}


@pytest.mark.long
def test_predictions_of_labels(runs, printed):
    table, folder, results = runs["multilabel"]
    clf = sft_jax.load(folder)
    images = sorted(table.parent.glob("*.png"))[:20]
    named, probabilities = clf.predict(images)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-clf.logits(images))), rtol=1e-5)
    for own, row in zip(named, probabilities, strict=True):
        over = [
            (chance, name)
            for chance, name, limit in zip(row, LABELS, results["thresholds"], strict=True)
            if chance >= limit
        ]
        assert own == [name for _, name in sorted(over, reverse=True)]
    assert {len(own) for own in named} > {1, 2}
    lines = printed(predict, "--workdir", folder, "--json", *images)
    assert [line["file"] for line in lines] == list(map(str, images))
    for line, own, row in zip(lines, named, probabilities, strict=True):
        assert line.keys() == {"file", "label", "probability", "top"}
        assert line["label"] == own
        assert line["probability"] == [pytest.approx(row[LABELS.index(name)], rel=1e-5) for name in own]
        assert [name for name, _ in line["top"]] == [LABELS[index] for index in np.argsort(-row)]
    with pytest.raises(ValueError, match="top=2: thresholds decide"):
        clf.predict(images, top=2)


@pytest.mark.long
def test_predictions_of_a_number(runs, printed):
    table, folder, _ = runs["regression"]
    clf = sft_jax.load(folder)
    images = sorted(table.parent.glob("*.png"))[:20]
    values = clf.predict(images)
    truth = [float(line.split(",")[1]) for line in table.read_text().splitlines()[1:21]]
    assert np.corrcoef(values, truth)[0, 1] > 0.8
    assert values.shape == (20,)
    np.testing.assert_array_equal(clf.logits(images)[:, 0], values)
    lines = printed(predict, "--workdir", folder, "--json", *images)
    assert lines == [
        {"file": str(path), "value": pytest.approx(value, rel=1e-5)} for path, value in zip(images, values, strict=True)
    ]
    with pytest.raises(ValueError, match="top=2 ranks classes, but the network predicts a number"):
        clf.predict(images, top=2)
    with pytest.raises(UserError, match="--top 2 ranks classes, but the network predicts the number 'age'"):
        printed(predict, "--workdir", folder, "--json", "--top", 2, images[0])


@pytest.mark.long
@pytest.mark.parametrize(
    ("task", "columns"), [("multilabel", "file,labels,blue,green,red"), ("regression", "file,value")]
)
def test_predictions_as_tables(runs, tmp_path, monkeypatch, capsys, task, columns):
    table, folder, _ = runs[task]
    image = table.parent / "000.png"
    for arguments in ([], ["--output", tmp_path / "p.csv"]):
        monkeypatch.setattr("sys.argv", ["predict", "--workdir", str(folder), *map(str, arguments), str(image)])
        predict.main()
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0] == columns
    assert lines[1].startswith(f"{image},")
    assert len(lines[1].split(",")) == len(columns.split(","))
    head = {"multilabel": ["picture", "labels", "sure", "most", "probable"], "regression": ["picture", "age"]}[task]
    assert capsys.readouterr().out.splitlines()[0].split() == head


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_exports_predict_the_same(runs, tmp_path, task):
    table, folder, _ = runs[task]
    images = sorted(table.parent.glob("*.png"))[:9]
    ours, own = sft_jax.load(folder), sft_jax.load(folder).decoder
    export.export(folder, "best", tmp_path / "e.stablehlo")
    exported = sft_jax.load(tmp_path / "e.stablehlo")
    np.testing.assert_allclose(exported.logits(images), ours.logits(images), rtol=1e-4, atol=1e-4)
    assert exported.learnt == ours.learnt
    assert json.dumps(exported.decoder.answers(ours.logits(images), None)) == json.dumps(
        own.answers(ours.logits(images), None)
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("task", "names", "learnt"),
    [
        ("multilabel", LABELS, {"loss": "bce", "arguments": {}, "thresholds": [0.2, 0.5, 0.7]}),
        ("regression", ("age",), {"mean": 40.0, "std": 7.0, "loss": "squared"}),
    ],
)
def test_weights_for_torch_and_onnx_predict_the_same(tmp_path, capsys, task, names, learnt):
    run = make_run(tmp_path / "run", task=task, names=names, learnt=learnt, model__name="resnet18")
    clf = sft_jax.load(run.folder)
    flax_to_resnet.convert(run.folder, None, tmp_path / "w.safetensors")
    assert f"task {task}, also in its metadata: {{" in capsys.readouterr().out
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    outputs = clf.logits(images)
    module = torchvision.models.resnet18(num_classes=len(names)).eval()
    module.load_state_dict(load_file(tmp_path / "w.safetensors"))
    inputs = torch.from_numpy(np.array(clf.preprocess.on_device(images))).permute(0, 3, 1, 2)
    with torch.no_grad():
        np.testing.assert_allclose(module(inputs), outputs, rtol=1e-4, atol=1e-4)
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        facts = file.metadata()
    flax_to_onnx.convert(run.folder, None, tmp_path / "n.onnx")
    onnx = onnxruntime.InferenceSession(tmp_path / "n.onnx", providers=["CPUExecutionProvider"])
    (theirs,) = onnx.run(None, {"images": inputs.numpy()})
    np.testing.assert_allclose(theirs, outputs, rtol=1e-4, atol=1e-4)
    for metadata in (facts, onnx.get_modelmeta().custom_metadata_map):
        assert metadata["task"] == task
        assert json.loads(metadata["learnt"]) == clf.learnt == learnt
    if task == "regression":
        head = run.restored("best").arrays
        features = clf.model.features(clf.preprocess.on_device(images), train=False).pooled
        normalised = features @ head["params/fc.kernel"] + head["params/fc.bias"][None]
        np.testing.assert_allclose(outputs, 40 + 7 * normalised, rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_a_run_starts_from_another_one_of_the_task(runs, tmp_path, task):
    """A regression's head is in the scale of the run that it starts, here of other numbers."""
    _, folder, results = runs[task]
    table = numbers(tmp_path, count=100, scale=70, shift=10) if task == "regression" else runs[task][0]
    changes = {"init": str(folder), "optimizer__learning_rate": 0.0, "epochs": 1, "finetune__batch_norm": "freeze"}
    again = run_on(table, tmp_path / "again", task, data__allow_overlap=True, **changes)
    assert "with its head" in (tmp_path / "again" / "train.log").read_text()
    images = sorted(runs[task][0].parent.glob("*.png"))[:9]
    ours, theirs = (sft_jax.load(one).logits(images) for one in (tmp_path / "again", folder))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)
    if task == "multilabel":
        assert again["test_map"] == pytest.approx(results["test_map"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_settings_are_searched_on_folds(runs, tmp_path, monkeypatch, capsys, task):
    monkeypatch.setattr(session, "Devices", one_device)
    config = complete(flatten(Run(runs[task][1]).config()) | {"epochs": 1})
    options = Options(trials=2, folds=2, sampler="grid", pruner="none", at_once=None, resume=False, command=["test"])
    winner = search(config, Space(["optimizer.learning_rate=choice(1e-7,0.02)"]), tmp_path, options, Console())
    assert winner.point == {"optimizer.learning_rate": "0.02"}
    assert {"multilabel": "scored by validation mAP on", "regression": "scored by mean absolute error on"}[
        task
    ] in capsys.readouterr().out
    space = Space(["regularization.label_smoothing=choice(0.1,0.2)"])
    with pytest.raises(UserError, match=r"config.regularization.label_smoothing=0.1 cannot be used with task="):
        search(config, space, tmp_path / "other", options, Console())


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_a_linear_probe_starts_from_the_solution(runs, tmp_path, task):
    """With a learning rate of 0 it is the solution."""
    changes = {"finetune__method": "head", "optimizer__learning_rate": 0.0, "epochs": 1}
    results = run_on(
        runs[task][0], tmp_path / "run", task, init=str(runs[task][1]), data__allow_overlap=True, **changes
    )
    if task == "multilabel":
        assert results["test_map"] > 0.8
    else:
        assert results["test_r2"] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_doctor_compiles_and_times_it(runs, monkeypatch, task):
    monkeypatch.setattr(ahead, "absent_devices", lambda name: AbsentDevices(jax.devices()[:1], 1 << 30))
    config = Run(runs[task][1]).config()
    report = ahead.examine(config, "gpu-h100", [16], lambda line: None)
    assert report["compiles"] is True
    assert report["eval_bytes"] > 0
    monkeypatch.setattr(planned, "Devices", one_device)
    planned.add_plan(config, [16], costs := Report(), Console(mute=True))
    assert [cost.size for cost in costs.costs] == [16]
    assert any("data       csv:" in line for line in costs.plan)


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_the_report_has_the_tasks_sections(runs, tmp_path, task):
    _, folder, _ = runs[task]
    pages = [(folder / "report.html").read_text(), rewrite(folder, tmp_path / "again.html", explain=False).read_text()]
    for page in pages:
        for text in {
            "multilabel": ("Per label", "threshold", "Worst mistakes", "blue missed", "data:image/png"),
            "regression": ("Predicted by true", "Residuals", "Largest errors", "off by", "data:image/png"),
        }[task]:
            assert text in page
        assert "Confusion" not in page
    sections = [page[page.index("<h2>") : page.index("<h2>Configuration")] for page in pages]
    assert len(sections[0]) == len(sections[1])


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.per_class", 3),
        ("data.balance", "full"),
        ("regularization.class_weights", "balanced"),
        ("regularization.label_smoothing", 0.1),
        ("multilabel.loss", "focal"),
        ("regression.loss", "huber"),
    ],
)
def test_settings_of_other_tasks_are_refused(runs, tmp_path, task, key, value):
    expected = pytest.raises(UserError, match=rf"^config.{key}={value} cannot be used with task={task}: [^\n]+$")
    with contextlib.nullcontext() if key.startswith(task) else expected:
        run_on(runs[task][0], tmp_path / "run", task, epochs=1, **{key.replace(".", "__"): value})


@pytest.mark.long
def test_settings_of_another_loss_are_refused(runs, tmp_path):
    with pytest.raises(UserError, match=r"^config.multilabel.focal_gamma is for multilabel.loss=focal, not bce$"):
        run_on(runs["multilabel"][0], tmp_path / "run", "multilabel", multilabel__focal_gamma=1.0)


def test_numbers_that_are_all_equal_are_refused(tmp_path):
    with pytest.raises(UserError, match="all training images have the number 5: there is nothing to learn"):
        run_on(numbers(tmp_path, count=40, scale=0, shift=5), tmp_path / "run", "regression")


@pytest.mark.long
def test_digits_are_numbers(tmp_path):
    results = run_on("-", tmp_path / "run", "regression", data__source="digits:0-4", limit_eval_examples=61, epochs=1)
    assert results["test_count"] == 61
    assert state_of(tmp_path / "run").metadata["class_names"] == ["number"]
