"""Tests of the progress of a run, its messages and its files."""

import io
import json
import math

import numpy as np
import pytest

from sft_jax.errors import UserError
from sft_jax.run.console import Console, duration, epoch_line
from sft_jax.run.progress import Progress, better, waited
from sft_jax.runtime.files import write_json, write_rows
from sft_jax.tasks.classification import Classification
from sft_jax.tasks.classification_sums import EvalSums, summarize
from sft_jax.tasks.statistics import CALIBRATION_BINS

TASK = Classification(("a", "b", "c"))


def finish(progress, accuracy, loss=0.5, steps=2, **settings):
    progress.add(np.full(steps, 0.25, np.float32), {"correct": np.full(steps, 3, np.int32)}, seconds=2.0)
    return progress.finish_epoch(
        TASK,
        TASK.main(),
        learning_rate=0.1,
        batch_size=4,
        validation={"accuracy": accuracy, "loss": loss, "balanced_accuracy": accuracy / 2, "macro_f1": accuracy / 4},
        validation_seconds=0.5,
        **settings,
    )


def test_only_a_finite_higher_value_is_better():
    assert better(0.0, None)
    assert better(0.6, 0.5)
    assert not better(0.5, 0.5), "the earlier epoch is kept"
    assert not better(0.4, 0.5)
    for value in (math.nan, math.inf, -math.inf):
        assert not better(value, None)
        assert not better(value, 0.5)


@pytest.mark.parametrize(
    ("values", "epochs"),
    [((), 0), ((0.5,), 0), ((0.5, 0.5, 0.4), 2), ((0.5, 0.4, 0.6), 0), ((0.5, math.nan), 1), ((math.nan, math.nan), 2)],
)
def test_epochs_without_improvement_are_counted(values, epochs):
    assert waited(values) == epochs


def test_a_metric_that_is_not_a_number_is_an_error():
    for value in (None, "0.5", np.array([0.5, 0.6])):
        with pytest.raises(TypeError):
            better(value, None)


def test_the_best_epoch_has_the_first_highest_finite_accuracy():
    progress = Progress()
    results = [finish(progress, accuracy) for accuracy in (math.nan, 0.5, 0.9, math.nan, math.inf, 0.9, 0.6)]
    assert results == [False, True, True, False, False, False, False]
    assert (progress.best, progress.best_epoch, progress.epoch) == (0.9, 3, 7)
    assert [row["best"] for row in progress.rows] == [None, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9]


def test_the_row_of_an_epoch():
    progress = Progress()
    finish(progress, 0.5)
    finish(progress, 0.75, loss=0.125)
    assert progress.rows[1] == {
        "epoch": 2,
        "step": 4,
        "learning_rate": 0.1,
        "train_loss": 0.25,
        "train_accuracy": 0.75,
        "val_loss": 0.125,
        "val_accuracy": 0.75,
        "val_balanced_accuracy": 0.375,
        "val_macro_f1": 0.1875,
        "best": 0.75,
        "train_images_per_s": 4.0,
        "epoch_s": 2.5,
    }
    assert progress.seconds == 5.0
    assert Progress(
        **progress.to_json() | {"epoch": 0, "best": None, "best_epoch": None, "seconds": 0.0, "rows": []}
    ) == (Progress()), "nothing is carried over to the next epoch"


def test_the_sums_do_not_depend_on_the_steps_per_call():
    losses = np.random.default_rng(0).random(100, np.float32)
    correct = np.arange(100, dtype=np.int32)
    sums = []
    for cuts in ([], [1], [50, 51], list(range(100))):
        progress = Progress()
        for some, hits in zip(np.split(losses, cuts), np.split(correct, cuts), strict=True):
            progress.add(some, {"correct": hits}, 0.0)
        sums.append((progress.epoch_loss, progress.epoch_sums["correct"], progress.epoch_steps))
    assert set(sums) == {(math.fsum(losses.tolist()), 4950, 100)} or len(set(sums)) == 1
    assert sums[0][0] == pytest.approx(math.fsum(losses.tolist()), rel=1e-14)


def test_progress_survives_json():
    progress = Progress()
    finish(progress, 1 / 3)
    progress.add(np.array([0.1], np.float32), {"correct": np.array([1])}, 0.7)
    assert Progress.from_json(json.loads(json.dumps(progress.to_json()))) == progress


def test_progress_of_versions_with_only_classification_is_read():
    progress = Progress()
    progress.add(np.array([0.1], np.float32), {"correct": np.array([3])}, 0.7)
    old = progress.to_json()
    old["epoch_correct"] = old.pop("epoch_sums")["correct"]
    assert Progress.from_json(old) == progress


ROW = {
    "epoch": 3,
    "train_loss": 0.89081,
    "train_accuracy": 0.691,
    "val_accuracy": 0.7264,
    "best": 0.7264,
    "train_images_per_s": 901.4,
}


def test_the_line_of_an_epoch():
    assert epoch_line(ROW, 100, 4323.0, TASK, TASK.main()) == (
        "epoch 3/100  loss 0.8908  train 69.1%  val 72.6%  best 72.6%  901 img/s  eta 1:12:03"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (723, "12:03"), (3599.7, "1:00:00"), (90061, "25:01:01")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_lines_are_printed_unchanged_and_logged(tmp_path, capsys):
    console, log = Console(), tmp_path / "train.log"
    lines = ["data [45000:] [red]x[/red] :smile:", "dög" + 60 * " long", "last"]
    console.line(lines[0])
    console.log_to(log)
    for line in lines[1:]:
        console.line(line)
    assert capsys.readouterr().out.splitlines() == lines
    logged = log.read_text().splitlines()
    assert [line.partition("  ")[2].rstrip() for line in logged] == lines
    Console().log_to(log)
    assert log.read_text().splitlines() == logged, "a resumed run appends to it"


def test_without_a_terminal_there_is_no_progress_bar(capsys):
    console = Console()
    with console.progress("epoch 1/2", 10) as bar:
        bar.advance(5, "loss 0.5")
        console.line("a line")
        bar.set(10, 10)
    assert capsys.readouterr().out == "a line\n"


def sums(confusion, loss, top5, calibration):
    confusion = np.array(confusion, np.int32)
    total = confusion.sum(dtype=np.int32)
    correct = np.trace(confusion).astype(np.int32)
    return EvalSums(total, np.float32(loss), correct, np.int32(top5), confusion, calibration)


def test_metrics_of_a_split():
    calibration = np.zeros((3, CALIBRATION_BINS), np.float32)
    calibration[:, 5] = (3, 1.2, 3)  # 3 images at confidence 0.4, all correct
    calibration[:, 14] = (5, 4.8, 4)  # 5 at 0.96, 4 of them correct
    evaluated = sums([[4, 1, 0], [0, 3, 0], [0, 0, 0]], loss=2.0, top5=8, calibration=calibration)
    figures = summarize(evaluated)
    figures_of_it = dict(figures)
    assert figures.pop("ece") == pytest.approx((3 * 0.6 + 5 * 0.16) / 8)
    assert figures == {
        "loss": 0.25,
        "accuracy": 7 / 8,
        "top5": 1.0,
        "count": 8,
        "balanced_accuracy": pytest.approx(0.9),
        "macro_f1": pytest.approx((8 / 9 + 6 / 7) / 2),
        "per_class_accuracy": [0.8, 1.0, None],
        "confusion": [[4, 1, 0], [0, 3, 0], [0, 0, 0]],
    }
    results = TASK.results(figures_of_it)
    wanted = (
        "test_accuracy test_top5 test_loss test_count test_balanced_accuracy test_macro_f1 "
        "class_names per_class_accuracy confusion ece"
    )
    assert " ".join(results) == wanted
    assert json.loads(json.dumps(results)) == results, "plain Python numbers"


def test_rows_are_written_atomically(tmp_path, monkeypatch):
    path = tmp_path / "run" / "metrics.jsonl"
    rows = [{"epoch": 1, "best": None}, {"epoch": 2, "best": 1 / 3}]
    write_rows(path, rows)
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    write_rows(path, rows[:1])
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows[:1]
    assert [file.name for file in path.parent.iterdir()] == ["metrics.jsonl"]

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(io, "open", full)
    for write in (lambda: write_rows(path, rows), lambda: write_json(path, {})):
        with pytest.raises(UserError, match=r"^.*metrics\.jsonl cannot be written: No space left on device$"):
            write()
    monkeypatch.undo()
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows[:1]


@pytest.mark.parametrize("classes", [200, 201])
def test_results_of_many_classes_are_sparse_and_read_back(classes):
    confusion = np.zeros((classes, classes), np.int64)
    confusion[3, 3], confusion[199, 7], confusion[0, 199] = 5, 2, 1
    evaluated = sums(confusion, 4.0, 8, np.ones((3, CALIBRATION_BINS), np.float32))
    names = tuple(map(str, range(classes)))
    task = Classification(names)
    results = json.loads(json.dumps(task.results(summarize(evaluated))))
    assert task.conclusion(results).startswith("test accuracy ")
    if classes > 200:
        assert results["confusion_counts"] == [[0, 199, 1], [3, 3, 5], [199, 7, 2]]
        assert "confusion" not in results
    else:
        assert results["confusion"] == confusion.tolist()
    read_back = Classification.figures_of(results)
    assert {name: read_back[name] for name in summarize(evaluated)} == summarize(evaluated)
    assert np.array(read_back["confusion"]).sum() == read_back["count"]
