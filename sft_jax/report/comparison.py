"""Runs side by side: their curves in the same charts, what their configurations differ in, and their results."""

from collections.abc import Sequence
from typing import Any

from sft_jax.config import flatten
from sft_jax.report.page import curves
from sft_jax.report.records import Records
from sft_jax.report.render import render, share, text
from sft_jax.run.console import duration
from sft_jax.tasks.statistics import wilson_interval


def comparison_page(runs: Sequence[Records]) -> str:
    """The page, as HTML, of runs with different names."""
    settings = [flatten(run.record["config"]) for run in runs]
    keys = sorted(set().union(*settings))
    values = {key: [text(part[key]) if key in part else "–" for part in settings] for key in keys}
    return render(
        "compare.html",
        names=[run.name for run in runs],
        charts=curves({run.name: run.rows for run in runs}),
        results=[_results(run) for run in runs],
        differences={key: row for key, row in values.items() if len(set(row)) > 1},
        same={key: row[0] for key, row in values.items() if len(set(row)) == 1},
        commands=[run.command for run in runs],
    )


def _results(run: Records) -> dict[str, Any]:
    """A row of the table of results."""
    best = run.best_row
    found = {
        "epochs": f"{len(run.rows)} of {flatten(run.record['config'])['epochs']}",
        "time": duration(sum(row["epoch_s"] for row in run.rows)),
        "validation": f"{best['val_accuracy']:.2%}" if best else "–",
        "test": "–",
        "interval": "",
        "loss": "–",
        "ece": "–",
    }
    if run.results is not None:
        accuracy, count = run.results["test_accuracy"], run.results["test_count"]
        low, high = wilson_interval(round(accuracy * count), count)
        found |= {
            "test": f"{accuracy:.2%}",
            "interval": f"{low:.1%} to {high:.1%}",
            "loss": f"{run.results['test_loss']:.4f}",
            "ece": share(run.results["ece"]),
        }
    return found
