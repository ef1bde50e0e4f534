"""Tests of the parts of the reports of several labels and of numbers."""

import numpy as np

from sft_jax.data.dataset import ArraySplit
from sft_jax.report import multilabel, regression
from sft_jax.report.records import Scored
from sft_jax.tasks.base import Kept
from sft_jax.tasks.multilabel import Multilabel


def split_of(**targets):
    count = len(next(iter(targets.values())))
    names = [f"{index}.png" for index in range(count)]
    return ArraySplit({"image": np.zeros((count, 4, 4, 3), np.uint8)}, targets, names)


def test_points_lie_where_their_numbers_are():
    truth, predicted = np.array([0.0, 5.0, 10.0]), np.array([0.0, 10.0, 5.0])
    plot = regression.scatter(truth, predicted, "image")
    left, right, top, bottom = regression.LEFT, regression.RIGHT, regression.TOP, regression.BOTTOM
    assert plot["points"] == [(left, bottom), ((left + right) / 2, top), (right, (top + bottom) / 2)]
    assert plot["x_ticks"][0] == (left, "0")
    assert plot["x_ticks"][-1] == (right, "10")
    assert plot["left_out"] == 0
    assert plot["described"] == "Predicted against true numbers of 3 images, correlation 0.500."


def test_of_many_points_some_are_shown_and_the_others_counted():
    truth = np.random.default_rng(0).normal(size=5000)
    plot = regression.scatter(truth, truth, "image")
    assert len(plot["points"]) == regression.POINTS
    assert plot["left_out"] == 3000
    ends = {plot["points"][0][0], plot["points"][-1][0]}
    assert min(x for x, _ in plot["points"]) in ends
    assert max(x for x, _ in plot["points"]) in ends


def test_equal_numbers_are_drawn():
    plot = regression.scatter(np.full(4, 7.0), np.full(4, 7.0), "image")
    assert np.isfinite(plot["points"]).all()
    assert regression.histogram(np.zeros(4), "image")["middle"] == "mean 0, standard deviation 0"


def test_the_histogram_counts_every_residual():
    residuals = np.random.default_rng(0).normal(1, 2, 400)
    plot = regression.histogram(residuals, "image")
    counts = [int(bar["text"].split(" images")[0]) for bar in plot["bars"]]
    assert sum(counts) == 400
    tallest = max(plot["bars"], key=lambda bar: bar["height"])
    assert tallest["height"] == regression.LOW - regression.TOP
    assert counts[plot["bars"].index(tallest)] == max(counts)


def test_the_largest_errors_come_first():
    truth, predicted = np.arange(40.0), np.arange(40.0)
    predicted[[3, 17]] += (-2, 9)
    scored = Scored("test", split_of(number=truth.astype(np.float32)), {}, np.zeros((40, 1), np.float32))
    first, second, *_ = regression.worst(scored, truth, predicted)
    assert (first.file, first.truth, first.predicted, first.note) == ("17.png", "17", "26", "off by +9")
    assert (second.file, second.note) == ("3.png", "off by -2")


def test_the_worst_mistakes_are_farthest_from_their_thresholds():
    labels = np.array([[1, 0], [0, 0], [1, 1]], np.uint8)
    logits = np.array([[3.0, 2.0], [-3.0, -1.0], [-4.0, 0.5]], np.float32)
    task = Multilabel(("ant", "bee"), thresholds=(0.5, 0.8))
    summary = task.summarize(Kept(3, logits, {"labels": labels}))
    mistakes = multilabel.mistakes(task, Scored("test", split_of(labels=labels), summary, logits), labels.astype(bool))
    assert [(one.file, one.predicted, one.note, one.truth) for one in mistakes] == [
        ("2.png", "ant missed", "2%", "ant, bee"),
        ("0.png", "bee given", "88%", "ant"),
        ("2.png", "bee missed", "62%", "ant, bee"),
    ]
    assert mistakes[1].described == "0.png: bee given with 88%; labels: ant"
