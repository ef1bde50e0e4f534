"""Runs side by side: their curves in the same charts, what their configurations differ in, and their results."""

from collections.abc import Sequence
from typing import Any

from sft_jax.config import flatten
from sft_jax.errors import UserError
from sft_jax.report.page import curves
from sft_jax.report.records import Records
from sft_jax.report.render import render, share, text
from sft_jax.run.console import duration
from sft_jax.tasks.classification import Classification
from sft_jax.tasks.statistics import wilson_interval


def comparison_page(runs: Sequence[Records]) -> str:
    """Returns the page, as HTML, of runs with different names.

    Raises:
      UserError: they did not learn the same task.
    """
    if len({run.task for run in runs}) > 1:
        raise UserError(f"runs of different tasks have no figures in common: {', '.join(run.name for run in runs)}")
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
    """A row of the table of results."""
    best, main = run.best_row, run.task.main()
    found = {
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
        found |= {
            "test": main.shown(value),
            "loss": f"{run.results['test_loss']:.4f}",
            "ece": share(run.results.get("ece")),
        }
        if run.task is Classification:
            low, high = wilson_interval(round(value * count), count)
            found["interval"] = f"{low:.1%} to {high:.1%}"
    return found
