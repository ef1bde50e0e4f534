"""The comparison of runs: their results, their curves in the same charts, and the differences of their settings."""

from collections.abc import Sequence
from typing import Any

from sft_jax.config import flatten
from sft_jax.errors import UserError
from sft_jax.report.page import curves
from sft_jax.report.records import Records
from sft_jax.report.render import percent, render, text
from sft_jax.run.console import duration
from sft_jax.tasks.classification import Classification
from sft_jax.tasks.statistics import wilson_interval


def comparison_page(runs: Sequence[Records]) -> str:
    """Returns the comparison of runs with different names as HTML.

    Raises:
      UserError: their tasks differ.
    """
    if len({run.task for run in runs}) > 1:
        raise UserError(f"runs of different tasks cannot be compared: {', '.join(run.name for run in runs)}")
    settings = [flatten(run.record["config"]) for run in runs]
    keys = sorted(set().union(*settings))
    values = {key: [text(part[key]) if key in part else "–" for part in settings] for key in keys}
    return render(
        "compare.html",
        names=[run.name for run in runs],
        charts=curves({run.name: run.rows for run in runs}, runs[0].task),
        results=[_results(run) for run in runs],
        differences={key: row for key, row in values.items() if len(set(row)) > 1},
        same={key: row[0] for key, row in values.items() if len(set(row)) == 1},
        commands=[run.command for run in runs],
    )


def _results(run: Records) -> dict[str, Any]:
    """Returns a row of the table of results."""
    best, main = run.best_row, run.task.main()
    entries = {
        "epochs": f"{len(run.rows)} of {flatten(run.record['config'])['epochs']}",
        "time": duration(sum(row["epoch_s"] for row in run.rows)),
        "validation": main.shown(best[main.name]) if best else "–",
        "test": "–",
        "interval": "",
        "loss": "–",
        "ece": "–",
    }
    if run.results is not None:
        value, count = run.results[f"test_{main.figure}"], run.results["test_count"]
        entries |= {
            "test": main.shown(value),
            "loss": f"{run.results['test_loss']:.4f}",
            "ece": percent(run.results.get("ece")),
        }
        if run.task is Classification:
            low, high = wilson_interval(round(value * count), count)
            entries["interval"] = f"{low:.1%} to {high:.1%}"
    return entries
