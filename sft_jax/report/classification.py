"""The page on a run of classification: confusion matrix, classes, calibration and mistakes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sft_jax.report.page import Tile, run_page
from sft_jax.report.pictures import data_uris
from sft_jax.report.records import Records, Scored
from sft_jax.report.render import share
from sft_jax.tasks import statistics

# Of more classes than these the table has the worst ones first.
TABLE_CLASSES = 25
MISTAKES, PAIRS, PICTURES_A_PAIR = 25, 10, 5
# Of more classes than these the matrix has the most confused ones only.
MATRIX_CLASSES = 20


class Picture(NamedTuple):
    """An image that was taken for something else."""

    uri: str
    described: str
    truth: str
    predicted: str
    confidence: float
    file: str = ""


def report_page(records: Records, class_names: Sequence[str], scored: Scored, temperature: float) -> str:
    """Returns the page, as HTML.

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
    predictions = statistics.predict(scored.outputs)
    correct = predictions.labels == scored.split.labels
    after = statistics.reliability(statistics.predict(scored.outputs, temperature).confidences, correct)
    before = statistics.reliability(predictions.confidences, correct)
    mistakes, pairs = pictured(class_names, scored, confusion, predictions)
    mean_f1 = statistics.mean_f1(per_class)
    return run_page(
        records,
        scored.name,
        tiles(scored, temperature, after.ece, mean_f1, len(classes)),
        template="classification.html",
        matrix=matrix(confusion, class_names),
        mean_f1=mean_f1,
        classes=classes,
        worst=worst if len(classes) > TABLE_CLASSES else [],
        temperature=temperature,
        diagrams=[diagram("As trained", before), diagram(f"Divided by {temperature:.3f}", after)],
        mistakes=mistakes,
        pairs=pairs,
    )


def tiles(scored: Scored, temperature: float, ece_after: float, mean_f1: float, classes: int) -> list[Tile]:
    """Returns the figures of the scored split at the top of the page."""
    summary, confusion = scored.summary, np.asarray(scored.summary["confusion"], np.int64)
    count = summary["count"]
    low, high = statistics.wilson_interval(round(summary["accuracy"] * count), count)
    found = [
        Tile(
            f"{scored.name.capitalize()} accuracy",
            f"{summary['accuracy']:.2%}",
            f"95% interval {low:.1%} to {high:.1%}, {count:,} images",
        )
    ]
    if classes > 5:
        found.append(Tile("Top-5 accuracy", f"{summary['top5']:.2%}", "the truth among the five likeliest classes"))
    return [
        *found,
        Tile("Loss", f"{summary['loss']:.4f}", "mean cross-entropy"),
        Tile("Balanced accuracy", share(statistics.balanced_accuracy(confusion)), "mean recall of the classes"),
        Tile("Mean F1", share(mean_f1), f"over {classes} classes"),
        Tile("Calibration error", share(summary["ece"]), f"{share(ece_after)} at temperature {temperature:.3f}"),
    ]


def pictured(
    class_names: Sequence[str], scored: Scored, confusion: np.ndarray, predictions: statistics.Predictions
) -> tuple[list[Picture], list[dict[str, Any]]]:
    """The most confident mistakes, and the most confused pairs of classes with theirs."""
    truth, said = scored.split.labels, predictions.labels
    wrong = np.flatnonzero(said != truth)
    wrong = wrong[np.argsort(-predictions.confidences[wrong], kind="stable")]
    pairs = statistics.confused_pairs(confusion, PAIRS)
    of_pair = [
        wrong[(truth[wrong] == pair.truth) & (said[wrong] == pair.predicted)][:PICTURES_A_PAIR] for pair in pairs
    ]
    uris = data_uris(scored.split, [row for rows in (wrong[:MISTAKES], *of_pair) for row in rows.tolist()])

    def picture(row: int) -> Picture:
        true_name, name = class_names[truth[row]], class_names[said[row]]
        confidence = float(predictions.confidences[row])
        file = scored.split.names[row] if scored.split.names is not None else ""
        which = file or f"{scored.name} image {row}"
        described = f"{which}: {true_name}, taken for {name} with {confidence:.0%} confidence"
        return Picture(uris[row], described, true_name, name, confidence, file)

    images = confusion.sum(1)
    return [picture(row) for row in wrong[:MISTAKES].tolist()], [
        {
            "truth": class_names[pair.truth],
            "predicted": class_names[pair.predicted],
            "count": pair.images,
            "images": int(images[pair.truth]),
            "pictures": [picture(row) for row in rows.tolist()],
        }
        for pair, rows in zip(pairs, of_pair, strict=True)
    ]


def matrix(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """The confusion matrix int [classes, classes], or its rows and columns with the most mistakes."""
    labels = statistics.confused_classes(confusion, MATRIX_CLASSES)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    worst = max(float((shares - np.diag(np.diag(shares))).max()), 1e-9)

    def cell(truth: int, said: int) -> dict[str, Any]:
        part = float(shares[truth, said])
        text = (
            f"{class_names[truth]} taken for {class_names[said]}" if truth != said else f"{class_names[truth]}: right"
        )
        return {
            "count": int(confusion[truth, said]),
            "hit": truth == said,
            "weight": 0.7 * part if truth == said else 0.75 * (part / worst) ** 0.8,
            "text": f"{text}, {confusion[truth, said]:,} of {confusion[truth].sum():,} images ({part:.1%})",
        }

    pairs = statistics.confused_pairs(confusion, 3)
    often = "; ".join(f"{class_names[truth]} taken for {class_names[said]} {n:,} times" for truth, said, n in pairs)
    return {
        "names": [class_names[label] for label in labels],
        "left_out": len(confusion) - len(labels),
        "cells": [[cell(truth, said) for said in labels] for truth in labels],
        "described": f"Confusion matrix of {len(labels)} classes. Most often {often or 'nothing was confused'}.",
    }


def diagram(title: str, found: statistics.Reliability) -> dict[str, Any]:
    """A reliability diagram in the coordinates of its template: 290 x 212, and 36 for the images in each bin."""
    bins, most = len(found.counts), found.counts.max()
    width = 290 / bins
    drawn = []
    for index in np.flatnonzero(found.counts):
        sure, right, count = found.confidences[index], found.accuracies[index], int(found.counts[index])
        upper, lower = max(sure, right), min(sure, right)
        drawn.append(
            {
                "x": round(50 + width * int(index) + 0.75, 2),
                "width": round(width - 1.5, 2),
                "y": round(222 - 212 * lower, 2),
                "height": round(212 * lower, 2),
                "gap_y": round(222 - 212 * upper, 2),
                "gap_height": round(212 * (upper - lower), 2),
                "count_y": round(266 - 36 * count / most, 2),
                "count_height": round(36 * count / most, 2),
                "text": f"{count:,} images: on average {sure:.1%} sure, {right:.1%} right",
            }
        )
    words = "; ".join(str(entry["text"]) for entry in drawn)
    described = f"Reliability diagram, {title.lower()}: calibration error {found.ece:.1%}. {words}"
    return {"title": title, "ece": found.ece, "bins": drawn, "described": described}
