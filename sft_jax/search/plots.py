"""Plots of a search: score by dimension, by trial and by epoch."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sft_jax.runtime.files import written_whole
from sft_jax.search.results import DONE, Trial, best
from sft_jax.search.space import Dimension

COLUMNS = 3
PANEL_INCHES = (4.6, 3.4)
PLAIN, BEST, FADED = "#33608c", "#c8402e", "#9aa3ab"


def draw(folder: Path, trials: Sequence[Trial], dimensions: Sequence[Dimension]) -> None:
    """Writes dimensions.png, history.png and curves.png. `trials` are in order, and at least one of them is done."""
    _save(_dimensions(trials, dimensions), folder / "dimensions.png")
    _save(_history(trials), folder / "history.png")
    _save(_curves(trials), folder / "curves.png")


def _dimensions(trials: Sequence[Trial], dimensions: Sequence[Dimension]) -> Figure:
    columns = min(COLUMNS, len(dimensions))
    rows = math.ceil(len(dimensions) / columns)
    figure = Figure((PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows), layout="constrained")
    for index, dimension in enumerate(dimensions):
        axes = figure.add_subplot(rows, columns, index + 1)
        _along(axes, [trial for trial in trials if trial.state == DONE], dimension)
    return figure


def _along(axes: Axes, trials: Sequence[Trial], dimension: Dimension) -> None:
    """Plots the score of each trial over its value of one dimension; bars are standard deviations over folds."""
    values = [trial.point[dimension.key] for trial in trials]
    places = [dimension.choices.index(str(value)) for value in values] if dimension.form == "choice" else values
    axes.errorbar(
        places,
        [_drawn(trial, trial.mean) for trial in trials],
        yerr=[abs(_drawn(trial, trial.deviation or 0.0)) for trial in trials] if len(trials[0].folds) > 1 else None,
        fmt="o",
        color=PLAIN,
        ecolor=FADED,
        markersize=5,
        elinewidth=1,
    )
    winner = best(trials)
    assert winner is not None
    axes.plot(places[list(trials).index(winner)], _drawn(winner, winner.mean), "o", color=BEST, markersize=8, zorder=3)
    low, high = dimension.low, dimension.high
    if dimension.form == "log":
        axes.set_xscale("log")
        margin = (high / low) ** 0.03
        axes.set_xlim(low / margin, high * margin)
    elif dimension.form != "choice":
        axes.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    else:
        axes.set_xticks(range(len(dimension.choices)), [_short(choice) for choice in dimension.choices])
        axes.set_xlim(-0.5, len(dimension.choices) - 0.5)
    _dress(axes, dimension.key, _label(trials[0]))


def _history(trials: Sequence[Trial]) -> Figure:
    figure = Figure((7.5, 4), layout="constrained")
    axes = figure.add_subplot()
    done = [trial for trial in trials if trial.state == DONE]
    leaders = [best(trials[: index + 1]) for index in range(len(trials))]
    axes.plot(
        [trial.number for trial in done], [_drawn(trial, trial.mean) for trial in done], "o", color=PLAIN, label="trial"
    )
    ended = [trial for trial in trials if trial.state != DONE]
    low = _drawn(done[0], min(trial.mean for trial in done))
    if ended:
        axes.plot([trial.number for trial in ended], [low] * len(ended), "x", color=FADED, label="pruned or diverged")
    steps = [
        (trial.number, _drawn(leader, leader.mean)) for trial, leader in zip(trials, leaders, strict=True) if leader
    ]
    axes.step(*zip(*steps, strict=True), where="post", color=BEST, label="best so far")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _dress(axes, "trial", _label(trials[0]))
    axes.legend(frameon=False)
    return figure


def _curves(trials: Sequence[Trial]) -> Figure:
    figure = Figure((7.5, 4), layout="constrained")
    axes = figure.add_subplot()
    winner = best(trials)
    for trial in trials:
        if trial.state == DONE and trial is not winner:
            axes.plot(range(1, len(trial.curve()) + 1), _drawn(trial, trial.curve()), color=FADED, linewidth=1)
    assert winner is not None
    curve = _drawn(winner, winner.curve())
    axes.plot(range(1, len(curve) + 1), curve, color=BEST, linewidth=2, label=f"best, trial {winner.number}")
    if not winner.stops_early:  # otherwise each fold has its own best epoch
        axes.plot(winner.epochs, curve[winner.epochs - 1], "o", color=BEST, label=f"its best epoch, {winner.epochs}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _dress(axes, "epoch", _label(trials[0]))
    axes.legend(frameon=False)
    return figure


def _drawn(trial: Trial, value: Any) -> Any:
    """Converts a score to the value of the monitor, in per cent if it is a fraction."""
    return (100 if trial.monitor.percent else 1) * trial.monitor.score(value)


def _label(trial: Trial) -> str:
    return trial.monitor.words + (", %" if trial.monitor.percent else "")


def _dress(axes: Axes, horizontal: str, vertical: str) -> None:
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _short(text: str) -> str:
    """Shortens a long choice, e.g. a path, to its end."""
    return text if len(text) <= 18 else "…" + text[-17:]


def _save(figure: Figure, path: Path) -> None:
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
