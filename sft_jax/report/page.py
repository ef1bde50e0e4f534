"""The page on one run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.config import flatten
from sft_jax.config.schema import KEYS
from sft_jax.report import charts
from sft_jax.report.records import Records, Scored
from sft_jax.report.render import render, share, text
from sft_jax.report.sections import diagram, matrix, pictured, tiles
from sft_jax.tasks import statistics

# Of more classes than these the table has the worst ones first.
TABLE_CLASSES = 25


def report_page(records: Records, class_names: Sequence[str], scored: Scored, temperature: float) -> str:
    """The page, as HTML.

    Args:
      records: of the run.
      class_names: label = position.
      scored: the test split of a finished run; before its end the validation split.
      temperature: fitted on the validation split's logits.
    """
    confusion = np.asarray(scored.summary["confusion"], np.int64)
    per_class = statistics.class_figures(confusion)
    classes = [{"name": name, **entry._asdict()} for name, entry in zip(class_names, per_class, strict=True)]
    worst = sorted(classes, key=lambda entry: 2.0 if entry["f1"] is None else entry["f1"])[:TABLE_CLASSES]
    predictions = statistics.predict(scored.logits)
    correct = predictions.labels == scored.split.labels
    after = statistics.reliability(statistics.predict(scored.logits, temperature).confidences, correct)
    before = statistics.reliability(predictions.confidences, correct)
    mistakes, pairs = pictured(class_names, scored, confusion, predictions)
    values = flatten(records.record["config"])
    plain = {key: text(value) for key, value in values.items()}
    defaults = {key: text(KEYS[key].default) for key in values if key in KEYS}
    return render(
        "report.html",
        name=records.name,
        subtitle=f"{values['model.name']} on {values['data.source']}, from {values['init']}",
        state=_state(records, values["epochs"]),
        split=scored.name,
        tiles=tiles(records, scored, temperature, after.ece, statistics.mean_f1(per_class), len(classes)),
        charts=curves({"": records.rows}),
        matrix=matrix(confusion, class_names),
        mean_f1=statistics.mean_f1(per_class),
        classes=classes,
        worst=worst if len(classes) > TABLE_CLASSES else [],
        temperature=temperature,
        diagrams=[diagram("As trained", before), diagram(f"Divided by {temperature:.3f}", after)],
        mistakes=mistakes,
        pairs=pairs,
        changed=[
            {"key": key, "value": value, "default": defaults[key]}
            for key, value in plain.items()
            if key in defaults and value != defaults[key]
        ],
        settings=[{"key": key, "value": value} for key, value in plain.items()],
        requirements=" ".join(f"{name}=={found}" for name, found in records.record["versions"].items()),
        devices=records.record["devices"],
        command=records.command,
    )


def curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[charts.Chart]:
    """Charts of loss, accuracy and learning rate of the rows of runs by label, with both splits where it is one run."""
    wanted: list[tuple[str, dict[str, str], Any, Any]] = [
        ("Loss", {"training": "train_loss", "validation": "val_loss"}, "{:.4f}".format, "{:g}".format),
        (
            "Accuracy",
            {"training": "train_accuracy", "validation": "val_accuracy"},
            share,
            lambda value: f"{100 * value:g}%",
        ),
        ("Learning rate", {"learning rate": "learning_rate"}, "{:.3g}".format, "{:g}".format),
    ]
    if len(runs) > 1:
        wanted = [
            (f"{title}, {name}" if len(keys) > 1 else title, {"": key}, *shown)
            for title, keys, *shown in wanted
            for name, key in keys.items()
        ]
    found = (
        charts.line_chart(
            title,
            {
                " ".join(filter(None, (run, label))): [(row["epoch"], row.get(key)) for row in rows]
                for run, rows in runs.items()
                for label, key in keys.items()
            },
            *shown,
        )
        for title, keys, *shown in wanted
    )
    return [chart for chart in found if chart is not None]


def _state(records: Records, epochs: int) -> str:
    done = len(records.rows)
    if records.results is None:
        return f"in training, {done} of {epochs} epochs done: figures of the validation images; no test image was seen"
    return f"finished after {done} epochs: figures of the test images, with the epoch that the validation images chose"
