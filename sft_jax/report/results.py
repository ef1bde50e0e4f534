"""The figures of a run: from evaluation sums to results.json and metrics.jsonl."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.errors import UserError
from sft_jax.report.figures import balanced_accuracy, class_figures, mean_f1
from sft_jax.step import EvalSums

# Up to so many classes results.json has the whole confusion matrix.
DENSE_CLASSES = 200


def summarize(sums: EvalSums) -> dict[str, Any]:
    """Figures of an evaluated split: loss (mean), accuracy, top5, count, balanced_accuracy, macro_f1,
    per_class_accuracy, confusion, ece.

    Balanced accuracy is the mean of the accuracies of the classes that have images; macro F1 that of the F1 of those
    that have images or were predicted. Both are scikit-learn's.

    The expected calibration error is the mean gap between confidence and accuracy over bins of confidence, weighted by
    their images (Guo et al., 2017, arXiv:1706.04599). A class with no image has accuracy None.
    """
    total = int(sums.total)
    confusion = np.asarray(sums.confusion)
    images, confidence, correct = np.asarray(sums.calibration, np.float64)
    per_class = [
        float(row[label] / row.sum()) if row.sum() else None for label, row in enumerate(confusion.astype(np.int64))
    ]
    return {
        "loss": float(sums.loss) / total,
        "accuracy": int(sums.correct) / total,
        "top5": int(sums.top5) / total,
        "count": total,
        "balanced_accuracy": balanced_accuracy(confusion),
        "macro_f1": mean_f1(class_figures(confusion.astype(np.int64))),
        "per_class_accuracy": per_class,
        "confusion": confusion.tolist(),
        "ece": float(np.abs(confidence - correct).sum() / images.sum()),
    }


def test_results(sums: EvalSums, class_names: Sequence[str]) -> dict[str, Any]:
    """What results.json says of the test split: `summarize`, six of its names with "test_" before them.

    Of more than `DENSE_CLASSES` classes `confusion` would be mostly zeros: `confusion_counts` in its place has
    [truth, prediction, images] for each pair of labels that there was.
    """
    figures = summarize(sums)
    names = ("accuracy", "top5", "loss", "count", "balanced_accuracy", "macro_f1")
    named = {f"test_{name}": figures.pop(name) for name in names}
    if len(class_names) > DENSE_CLASSES:
        confusion = np.array(figures.pop("confusion"))
        rows = np.argwhere(confusion)
        figures["confusion_counts"] = np.column_stack([rows, confusion[tuple(rows.T)]]).tolist()
    return named | {"class_names": list(class_names), **figures}


def test_summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `test_results`: the figures of the test split as `summarize` gives them."""
    figures = {name.removeprefix("test_"): value for name, value in results.items()}
    if "confusion_counts" in figures:
        classes = len(figures["class_names"])
        truth, predicted, counts = np.array(figures.pop("confusion_counts")).reshape(-1, 3).T
        confusion = np.zeros((classes, classes), np.int64)
        confusion[truth, predicted] = counts
        figures["confusion"] = confusion.tolist()
    return figures


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes `value`, whole or not at all. Raises UserError where it cannot."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line, whole or not at all. Raises UserError where it cannot."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Writes `text`, whole or not at all. Raises UserError where it cannot."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content`, whole or not at all. Raises UserError where it cannot."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from None
