"""The report of a run: the parts common to all tasks."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sft_jax.config import flatten
from sft_jax.config.schema import KEYS
from sft_jax.report import charts
from sft_jax.report.records import Records, Scored
from sft_jax.report.render import percent, render, text
from sft_jax.run.console import duration
from sft_jax.tasks import Monitor, Task


class Tile(NamedTuple):
    """A metric at the top of the report."""

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
    """Returns the report as HTML.

    Args:
      records: the run's records.
      split: the evaluated split: "test" for a finished run, otherwise "validation".
      tiles: the task's metrics at the top of the report.
      template: the task's template, which extends report.html.
      sections: variables of that template.
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
        unit=records.task.unit,
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
    """Returns the report for a task without its own sections, with all metrics that it can monitor."""
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
    tiles, best, main = [], records.best_row, records.task.main()
    if best is not None:
        tiles.append(Tile("Best epoch", str(best["epoch"]), f"{main.words} {main.shown(best[main.name])}"))
    if records.rows:
        seconds = sum(row["epoch_s"] for row in records.rows)
        speed = np.median([row["train_images_per_s"] for row in records.rows])
        tiles.append(
            Tile(
                "Time",
                duration(seconds),
                f"for {len(records.rows)} epochs; {speed:,.0f} {records.task.unit}s/s in training",
            )
        )
    return tiles


class Panel(NamedTuple):
    """A chart: label -> column of metrics.jsonl, and formatters of values and ticks."""

    title: str
    columns: dict[str, str]
    show: Any
    show_tick: Any


def curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], task: type[Task]) -> list[charts.Chart]:
    """Lays out charts of loss, the task's main metric and learning rate, for `runs`: label -> rows.

    For a single run, training and validation share a chart.
    """
    panels = [
        Panel("Loss", {"training": "train_loss", "validation": "val_loss"}, "{:.4f}".format, "{:g}".format),
        _of_figure(task.main()),
        Panel("Learning rate", {"learning rate": "learning_rate"}, "{:.3g}".format, "{:g}".format),
    ]
    if len(runs) > 1:
        panels = [part for panel in panels for part in _apart(panel)]
    laid_out = []
    for panel in panels:
        lines = {
            " ".join(filter(None, (run, label))): [(row["epoch"], row.get(column)) for row in rows]
            for run, rows in runs.items()
            for label, column in panel.columns.items()
        }
        laid_out.append(charts.line_chart(panel.title, lines, panel.show, panel.show_tick))
    return [chart for chart in laid_out if chart is not None]


def _of_figure(main: Monitor) -> Panel:
    columns = {"training": f"train_{main.figure}", "validation": main.name}
    title = main.figure.replace("_", " ").capitalize().replace("iou", "IoU")
    if main.percent:
        return Panel(title, columns, percent, lambda value: f"{100 * value:g}%")
    return Panel(title, columns, "{:.4f}".format, "{:g}".format)


def _apart(panel: Panel) -> list[Panel]:
    """Splits a panel into one per column, in which each line is a run."""
    several = len(panel.columns) > 1
    return [
        panel._replace(title=f"{panel.title}, {name}" if several else panel.title, columns={"": column})
        for name, column in panel.columns.items()
    ]


def _state(records: Records, epochs: int) -> str:
    done = len(records.rows)
    if records.results is None:
        unit = records.task.unit
        return f"in progress, {done} of {epochs} epochs done: validation metrics; no test {unit} was used"
    return f"finished after {done} epochs: test metrics of the epoch selected on the validation split"
