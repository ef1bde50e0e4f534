"""The report of a regression run: predicted against true numbers, residuals, and the examples with the worst errors."""

from typing import Any

import numpy as np

from sft_jax.report.charts import nice_ticks
from sft_jax.report.page import Tile, run_page
from sft_jax.report.pictures import Picture
from sft_jax.report.records import Records, Scored
from sft_jax.tasks.regression import Regression

# With more images, the scatter plot shows this many of them, evenly spaced in the order of the true numbers.
POINTS = 2000
BINS = 20
ERRORS = 25
# Plotting areas within the templates' 360 x 304 and 360 x 234.
LEFT, RIGHT, TOP, BOTTOM, LOW = 56, 346, 10, 262, 192


def page(records: Records, task: Regression, scored: Scored, on_validation: Scored) -> str:
    """Returns the report as HTML.

    Args:
      records: the run's records.
      task: the task.
      scored: the test split of a finished run, or the validation split of an unfinished one.
      on_validation: the validation split; not used.
    """
    truth, predicted = scored.split.targets["number"].astype(np.float64), task.numbers(scored.outputs)
    return run_page(
        records,
        scored.name,
        tiles(scored, truth, task.name),
        template="regression.html",
        name_of_number=task.name,
        scatter=scatter(truth, predicted, scored.unit),
        histogram=histogram(predicted - truth, scored.unit),
        errors=worst(scored, truth, predicted),
        explained=scored.explainer and scored.explainer.method,
    )


def tiles(scored: Scored, truth: np.ndarray, name: str) -> list[Tile]:
    """Returns the metrics at the top of the report."""
    summary = scored.summary
    alone = float(np.abs(truth - np.median(truth)).mean())
    ranks = [Tile("Spearman correlation", f"{summary['spearman']:.4f}", "of ranks")] if "spearman" in summary else []
    return [
        *ranks,
        Tile(
            f"{scored.name.capitalize()} mean absolute error",
            f"{summary['mae']:.4g}",
            f"{summary['count']:,} {scored.unit}s; always saying their median would give {alone:.4g}",
        ),
        Tile("Root mean square error", f"{summary['rmse']:.4g}", f"of {name}"),
        Tile("R²", f"{summary['r2']:.4f}", "1 is perfect, 0 no better than the mean"),
        Tile("Loss", f"{summary['loss']:.4f}", "of errors in standard deviations"),
    ]


def scatter(truth: np.ndarray, predicted: np.ndarray, unit: str) -> dict[str, Any]:
    """Lays out predicted against true numbers of what is called `unit`, with the same scale on both axes."""
    order = np.argsort(truth, kind="stable")
    rows = order[np.unique(np.linspace(0, len(order) - 1, min(POINTS, len(order))).round().astype(int))]
    ticks = nice_ticks(float(min(truth.min(), predicted.min())), float(max(truth.max(), predicted.max())), 5)
    span = (ticks[-1] - ticks[0]) or 1.0

    def across(value: float) -> float:
        return round(LEFT + (value - ticks[0]) / span * (RIGHT - LEFT), 1)

    def up(value: float) -> float:
        return round(BOTTOM - (value - ticks[0]) / span * (BOTTOM - TOP), 1)

    correlation = np.corrcoef(truth, predicted)[0, 1] if truth.std() and predicted.std() else 0.0
    return {
        "points": [(across(truth[row]), up(predicted[row])) for row in rows.tolist()],
        "x_ticks": [(across(tick), f"{tick:g}") for tick in ticks],
        "y_ticks": [(up(tick), f"{tick:g}") for tick in ticks],
        "left_out": len(order) - len(rows),
        "described": f"Predicted against true numbers of {len(truth):,} {unit}s, correlation {correlation:.3f}.",
    }


def histogram(residuals: np.ndarray, unit: str) -> dict[str, Any]:
    """Lays out the histogram of predicted minus true numbers of what is called `unit`."""
    most = float(np.abs(residuals).max()) or 1.0
    counts, edges = np.histogram(residuals, bins=BINS, range=(-most, most))
    width, height = (RIGHT - LEFT) / BINS, LOW - TOP
    bars = [
        {
            "x": round(LEFT + width * index + 0.75, 2),
            "width": round(width - 1.5, 2),
            "y": round(LOW - height * int(count) / int(counts.max()), 2),
            "height": round(height * int(count) / int(counts.max()), 2),
            "text": f"{int(count):,} {unit}s: {edges[index]:.3g} to {edges[index + 1]:.3g}",
        }
        for index, count in enumerate(counts)
    ]
    middle = f"mean {residuals.mean():.3g}, standard deviation {residuals.std():.3g}"
    ticks = [(LEFT, f"{-most:.3g}"), ((LEFT + RIGHT) / 2, "0"), (RIGHT, f"{most:.3g}")]
    return {"bars": bars, "ticks": ticks, "middle": middle, "described": f"Histogram of residuals: {middle}."}


def worst(scored: Scored, truth: np.ndarray, predicted: np.ndarray) -> list[Picture]:
    """Returns the examples with the largest errors."""
    rows = np.argsort(-np.abs(predicted - truth), kind="stable")[:ERRORS].tolist()
    uris, spans = scored.uris(rows), scored.spans([(row, 0) for row in rows])

    def wrong(row: int) -> Picture:
        own, said = f"{truth[row]:.4g}", f"{predicted[row]:.4g}"
        described = f"{scored.called(row)}: {own}, predicted {said}"
        note = f"off by {predicted[row] - truth[row]:+.4g}"
        return Picture(uris[row], described, own, said, note, scored.file(row), spans=spans[row, 0])

    return [wrong(row) for row in rows]
