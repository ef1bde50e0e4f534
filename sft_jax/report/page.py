"""The page on one run: what all tasks have in common."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sft_jax.config import flatten
from sft_jax.config.schema import KEYS
from sft_jax.report import charts
from sft_jax.report.records import Records, Scored
from sft_jax.report.render import render, share, text
from sft_jax.run.console import duration
from sft_jax.tasks import Monitor, Task


class Tile(NamedTuple):
    """A figure at the top of the page."""

    label: str
    value: str
    note: str = ""


def run_page(
    records: Records,
    split: str,
    tiles: Sequence[Tile],
    *,
    template: str = "report.html",
    **sections: Any,
) -> str:
    """Returns the page, as HTML.

    Args:
      records: of the run.
      split: the one that is scored: "test" of a finished run, "validation" before its end.
      tiles: the task's figures, those at the top of the page.
      template: the task's own, which extends report.html.
      sections: what that one shows.
    """
    values = flatten(records.record["config"])
    plain = {key: text(value) for key, value in values.items()}
    defaults = {key: text(KEYS[key].default) for key in values if key in KEYS}
    return render(
        template,
        name=records.name,
        subtitle=f"{values['model.name']} on {values['data.source']}, from {values['init']}",
        state=_state(records, values["epochs"]),
        split=split,
        tiles=[*tiles, *_tiles(records)],
        charts=curves({"": records.rows}, records.task),
        changed=[
            {"key": key, "value": value, "default": defaults[key]}
            for key, value in plain.items()
            if key in defaults and value != defaults[key]
        ],
        settings=[{"key": key, "value": value} for key, value in plain.items()],
        requirements=" ".join(f"{name}=={version}" for name, version in records.record["versions"].items()),
        devices=records.record["devices"],
        command=records.command,
        **sections,
    )


def plain_page(records: Records, scored: Scored) -> str:
    """Returns the page of a task that has no sections of its own: the figures that it monitors."""
    tiles = [
        Tile(
            f"{scored.name.capitalize()} {monitor.figure.replace('_', ' ')}",
            monitor.shown(scored.summary[monitor.figure]),
            f"{scored.summary['count']:,} examples",
        )
        for monitor in records.task.monitors.values()
    ]
    return run_page(records, scored.name, tiles)


def _tiles(records: Records) -> list[Tile]:
    found, best, main = [], records.best_row, records.task.main()
    if best is not None:
        found.append(Tile("Best epoch", str(best["epoch"]), f"{main.words} {main.shown(best[main.name])}"))
    if records.rows:
        seconds = sum(row["epoch_s"] for row in records.rows)
        speed = np.median([row["train_images_per_s"] for row in records.rows])
        found.append(
            Tile("Time", duration(seconds), f"for {len(records.rows)} epochs; {speed:,.0f} images/s in training")
        )
    return found


class Panel(NamedTuple):
    """A chart of columns of metrics.jsonl, by what they are called in it, and how values and ticks are shown."""

    title: str
    columns: dict[str, str]
    show: Any
    show_tick: Any


def curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], task: type[Task]) -> list[charts.Chart]:
    """Draws loss, the task's own figure and the learning rate of the rows of runs by label: both splits in one chart
    where it is one run.
    """
    panels = [
        Panel("Loss", {"training": "train_loss", "validation": "val_loss"}, "{:.4f}".format, "{:g}".format),
        _of_figure(task.main()),
        Panel("Learning rate", {"learning rate": "learning_rate"}, "{:.3g}".format, "{:g}".format),
    ]
    if len(runs) > 1:
        panels = [part for panel in panels for part in _apart(panel)]
    found = []
    for panel in panels:
        lines = {
            " ".join(filter(None, (run, label))): [(row["epoch"], row.get(column)) for row in rows]
            for run, rows in runs.items()
            for label, column in panel.columns.items()
        }
        found.append(charts.line_chart(panel.title, lines, panel.show, panel.show_tick))
    return [chart for chart in found if chart is not None]


def _of_figure(main: Monitor) -> Panel:
    columns = {"training": f"train_{main.figure}", "validation": main.name}
    title = main.figure.replace("_", " ").capitalize()
    if main.percent:
        return Panel(title, columns, share, lambda value: f"{100 * value:g}%")
    return Panel(title, columns, "{:.4f}".format, "{:g}".format)


def _apart(panel: Panel) -> list[Panel]:
    """The columns of a panel in panels of their own, whose lines are then runs."""
    several = len(panel.columns) > 1
    return [
        panel._replace(title=f"{panel.title}, {name}" if several else panel.title, columns={"": column})
        for name, column in panel.columns.items()
    ]


def _state(records: Records, epochs: int) -> str:
    done = len(records.rows)
    if records.results is None:
        return f"in training, {done} of {epochs} epochs done: figures of the validation images; no test image was seen"
    return f"finished after {done} epochs: figures of the test images, with the epoch that the validation images chose"
