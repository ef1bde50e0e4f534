"""The output of a search: the table on the console, search.csv, search.json and best.py."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console as RichConsole
from rich.table import Table

from sft_jax.runtime.files import write_json, write_text
from sft_jax.search.results import DONE, Trial

# Wide enough for a dozen folds without wrapping.
TABLE_WIDTH = 240


def table_lines(trials: Sequence[Trial], keys: Iterable[str], folds: int) -> list[str]:
    """Formats the table of `trials`, which are ranked, with a column for each of the config keys `keys`."""
    table = Table(box=None, pad_edge=False, header_style="")
    columns = ["rank", "trial", *(key.rpartition(".")[2] for key in keys), "mean"]
    columns += ["std", *(f"fold {fold + 1}" for fold in range(folds))] if folds > 1 else []
    for column in [*columns, "epochs", "seconds", "state"]:
        table.add_column(column, justify="right", no_wrap=True)
    for rank, trial in enumerate(trials, 1):
        done = trial.state == DONE
        scores = [trial.shown(trial.mean)] if done else ["-"]
        if folds > 1:
            scores += (
                [trial.shown(trial.deviation), *map(trial.shown, trial.per_fold)]
                if done and trial.deviation is not None
                else ["-"] * (folds + 1)
            )
        entries = [f"{entry:.4g}" if isinstance(entry, float) else str(entry) for entry in trial.point.values()]
        last = [str(trial.epochs) if done else "-", f"{trial.seconds:.1f}", trial.state]
        table.add_row(str(rank), str(trial.number), *entries, *scores, *last)
    text = io.StringIO()
    RichConsole(file=text, width=TABLE_WIDTH, markup=False, emoji=False, highlight=False, color_system=None).print(
        table
    )
    return [line.rstrip() for line in text.getvalue().splitlines()]


def write_tables(folder: Path, trials: Sequence[Trial], folds: int, facts: Mapping[str, Any]) -> None:
    """Writes search.csv, with one line per trial, and search.json, with the curves and `facts`. Raises UserError."""
    rows = [{"rank": rank, **trial.row()} for rank, trial in enumerate(trials, 1)]
    text = io.StringIO()
    flat = []
    for row in rows:
        scores = row.pop("per_fold") or [None] * folds
        flat.append(row | {f"fold_{fold}": score for fold, score in enumerate(scores, 1)})
    writer = csv.DictWriter(text, list(flat[0]) if flat else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_text(folder / "search.csv", text.getvalue())
    whole = [
        {"rank": rank, **trial.row(), "folds": [fold.to_json(trial.monitor) for fold in trial.folds]}
        for rank, trial in enumerate(trials, 1)
    ]
    write_json(folder / "search.json", {**facts, "trials": whole})


def best_config(config: ConfigDict, trial: Trial) -> tuple[ConfigDict, bool]:
    """Returns the configuration of the best trial, and whether its `epochs` were reduced to the trial's best number.

    That is only possible if a shorter run is identical to the start of the longer one, which is not the case for
    schedules that depend on the number of epochs, and unnecessary with early stopping.
    """
    cut = (
        config.regularization.early_stopping is None
        and config.optimizer.schedule == "constant"
        and config.optimizer.warmup_epochs < trial.epochs
        and not config.data.size_schedule
        and (config.finetune.method != "head_then_full" or config.finetune.head_epochs < trial.epochs)
    )
    if not cut:
        return config, False
    chosen = config.copy_and_resolve_references()
    with chosen.unlocked():
        chosen.epochs = trial.epochs
    return chosen, True
