"""Tests of balanced accuracy, macro F1, and the metric that selects the best epoch (monitor)."""

import json
import math

import numpy as np
import pytest
from report_records import figures_of, records, scored
from sklearn.metrics import balanced_accuracy_score, f1_score
from tiny_runs import TINY, one_device, rows_of, run, state_of

from sft_jax.config import complete
from sft_jax.errors import UserError
from sft_jax.report.classification import report_page
from sft_jax.report.comparison import comparison_page
from sft_jax.run.console import Console, epoch_line
from sft_jax.run.folder import Run
from sft_jax.run.progress import Progress
from sft_jax.search import session
from sft_jax.search.results import DIVERGED, Fold, Trial, best, ranked
from sft_jax.search.session import Options, search
from sft_jax.search.space import Space
from sft_jax.tasks import monitor_of
from sft_jax.tasks.classification import Classification
from sft_jax.tasks.classification_sums import summarize
from sft_jax.tasks.statistics import is_unequal
from sft_jax.training import trainer as train_module


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("missing", [False, True])
def test_balanced_accuracy_and_macro_f1_match_scikit_learn(classes, missing):
    """With imbalanced classes, and classes without images or predictions."""
    generator = np.random.default_rng(classes)
    labels = generator.choice(classes, 300, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    logits = generator.normal(size=(300, classes)).astype(np.float32)
    logits[np.arange(300), labels] += 1
    if missing:
        labels = np.maximum(labels, 1)
        logits[:, -1] = -99
    figures = figures_of(logits, labels.astype(np.int32))
    predicted = logits.argmax(1)
    recalls = [(predicted[labels == label] == label).mean() for label in np.unique(labels)]
    assert figures["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    if set(predicted) <= set(labels):
        assert figures["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert figures["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0))


TASK, MONITORS = Classification(("a", "b")), Classification.monitors


def finish(progress, monitor, **figures):
    progress.add(np.zeros(1, np.float32), {"correct": np.zeros(1, np.int32)}, seconds=1.0)
    whole = {"accuracy": 0.5, "loss": 1.0, "balanced_accuracy": 0.5, "macro_f1": 0.5} | figures
    return progress.finish_epoch(
        TASK, MONITORS[monitor], learning_rate=0.1, batch_size=4, validation=whole, validation_seconds=0.5
    )


@pytest.mark.parametrize("monitor", MONITORS)
def test_the_monitor_selects_the_best_epoch(monitor):
    progress = Progress()
    name, sign = monitor.removeprefix("val_"), -1 if monitor == "val_loss" else 1
    values = [0.5 * sign, 0.7 * sign, 0.6 * sign, math.nan, 0.7 * sign]
    better = [finish(progress, monitor, **{"accuracy": 0.1 * epoch, name: value}) for epoch, value in enumerate(values)]
    assert better == [True, True, False, False, False]
    assert (progress.best, progress.best_epoch) == (0.7 * sign, 2)
    outcome = progress.outcome(TASK, MONITORS[monitor])
    assert outcome["best_val_accuracy"] == progress.rows[1]["val_accuracy"]
    assert outcome[f"best_{monitor}"] == 0.7 * sign


def test_a_run_of_a_version_without_monitors_continues():
    """Its rows contain only the accuracy."""
    progress = Progress()
    finish(progress, "val_accuracy")
    old = progress.to_json()
    for name in ("val_balanced_accuracy", "val_macro_f1"):
        del old["rows"][0][name]
    again = Progress.from_json(json.loads(json.dumps(old)))
    assert not finish(again, "val_accuracy", accuracy=0.4)
    assert again.outcome(TASK, TASK.main())["best_val_accuracy"] == 0.5


def test_higher_scores_are_better():
    loss, accuracy = MONITORS["val_loss"], MONITORS["val_accuracy"]
    assert loss.rank({"loss": 0.5}) == loss.score(0.5) == -0.5
    assert MONITORS["val_macro_f1"].rank({"macro_f1": 0.5}) == 0.5
    assert loss.rank({"loss": math.nan}) == -math.inf
    assert (loss.shown(0.5), accuracy.shown(0.5, 1), loss.shown(None)) == ("0.5000", "50.0%", "-")


def test_the_default_monitor_is_the_tasks_and_unknown_ones_are_refused():
    assert monitor_of(complete({})) == MONITORS["val_accuracy"]
    assert monitor_of(complete({"monitor": "val_loss"})) == MONITORS["val_loss"]
    with pytest.raises(UserError) as caught:
        monitor_of(complete({"monitor": "val_acc"}))
    assert str(caught.value) == (
        "config.monitor='val_acc' must be one of val_accuracy, val_balanced_accuracy, val_macro_f1, val_loss, or none"
    )
    with pytest.raises(UserError, match="unknown config.task='classify'; did you mean 'classification'"):
        monitor_of(complete({"task": "classify"}))


def test_an_unknown_monitor_is_refused_before_anything_is_read(tmp_path):
    settings = {"monitor": "val_acc", "data__source": "folder:no_such_folder"}
    with pytest.raises(UserError, match="monitor='val_acc' must be one of"):
        run(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_the_console_shows_the_monitored_metric():
    progress = Progress()
    finish(progress, "val_loss", loss=0.25)
    line = epoch_line(progress.rows[0], 3, 60.0, TASK, MONITORS["val_loss"])
    assert "  val 50.0%  val_loss 0.2500  best 0.2500  " in line
    assert "  val 50.0%  best 0.2500" not in line


def test_the_report_shows_the_balanced_accuracy_and_the_best_epoch():
    """This includes a run that monitors the loss."""
    run = records(monitor="val_loss")
    for row, value in zip(run.rows, (0.9, 0.3, 0.3), strict=True):
        row["best"] = value
    assert run.best_row["epoch"] == 2
    split = scored(3)
    page = report_page(run, ("a", "b", "c"), split, 1.0)
    assert "Balanced accuracy" in page
    assert f"{100 * split.summary['balanced_accuracy']:.1f}" in page
    assert f"validation accuracy {run.rows[1]['val_accuracy']:.2%}" in page
    assert f"{run.rows[1]['val_accuracy']:.2%}" in comparison_page([run, records("other")])


def test_imbalanced_classes_are_detected():
    assert is_unequal(np.array([[10, 0, 0], [0, 0, 0], [1, 0, 4]]))
    assert not is_unequal(np.array([[10, 0, 0], [0, 0, 0], [1, 0, 6]]))


@pytest.mark.long
def test_a_run_keeps_the_epoch_with_the_lowest_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "Devices", one_device)
    losses = iter([0.5, 0.2, 0.9, 0.4, 0.1])  # of four epochs, and of the test images

    def fake(self, sums):
        return summarize(sums) | {"loss": next(losses)}

    monkeypatch.setattr(Classification, "summarize", fake)
    settings = {"monitor": "val_loss", "regularization__early_stopping": 2, "epochs": 9}
    results = run(tmp_path / "run", **settings)
    assert [row["best"] for row in rows_of(tmp_path / "run")] == [0.5, 0.2, 0.2, 0.2]
    assert (results["best_epoch"], results["epochs"], results["best_val_loss"]) == (2, 4, 0.2)
    assert Run(tmp_path / "run").checkpoints.restore("best").step == 2 * state_of(tmp_path / "run").step // 4
    assert "validation loss has not improved since epoch 2" in (tmp_path / "run" / "train.log").read_text()


def fold(*losses, **settings):
    return Fold(list(losses), score=[-loss for loss in losses], **settings)


def test_trials_are_ranked_by_the_monitor():
    trials = [
        Trial(1, {}, (fold(0.5, 0.4), fold(0.6, 0.2)), MONITORS["val_loss"]),
        Trial(2, {}, (fold(0.4, 0.5), fold(0.1, 0.7)), MONITORS["val_loss"]),
        Trial(3, {}, (fold(0.1), fold(state=DIVERGED)), MONITORS["val_loss"]),
    ]
    assert [trial.number for trial in ranked(trials)] == [2, 1, 3]
    assert best(trials).epochs == 1
    row = trials[0].row()
    assert (row["mean"], row["per_fold"]) == (pytest.approx(0.3), [0.4, 0.2])
    assert trials[0].shown(trials[0].mean) == "0.3000"
    assert trials[2].mean == -math.inf
    kept = {"val_accuracy": [0.3, 0.4], "val_loss": [1, 1], "monitor": "val_accuracy"}
    assert Fold.from_json(kept).score == [0.3, 0.4], "from a version without monitors"


@pytest.mark.long
def test_a_search_is_scored_by_the_loss(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(session, "Devices", one_device)
    options = Options(trials=2, folds=1, sampler="grid", pruner="median", at_once=1, resume=False, command=["test"])
    config = complete(TINY | {"monitor": "val_loss", "epochs": 1})
    winner = search(config, Space(["optimizer.learning_rate=choice(1e30,0.02)"]), tmp_path, options, Console())
    assert winner.point == {"optimizer.learning_rate": "0.02"}
    trials = json.loads((tmp_path / "search.json").read_text())["trials"]
    assert trials[0]["mean"] == trials[0]["folds"][0]["val_loss"][0] > 0
    printed = capsys.readouterr().out
    assert "trials are scored by validation loss on" in printed
    assert f"validation loss {trials[0]['mean']:.4f} after 1 epochs" in printed
