"""The report of a classification run: confusion matrix, metrics per class, calibration and mistakes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sft_jax.data.sampling import spread
from sft_jax.report.page import Tile, run_page
from sft_jax.report.pictures import Picture
from sft_jax.report.records import Records, Scored
from sft_jax.report.render import percent
from sft_jax.tasks import statistics
from sft_jax.tasks.classification import Classification

# With more classes, the table starts with the worst ones.
TABLE_CLASSES = 25
MISTAKES, PAIRS, PICTURES_A_PAIR = 25, 10, 5
# Right predictions shown with their heat maps.
RIGHT = 15
# With more classes, the matrix only shows the most confused ones.
MATRIX_CLASSES = 20


def page(records: Records, task: Classification, scored: Scored, on_validation: Scored) -> str:
    """Returns the report as HTML; the softmax temperature is fitted on the validation split."""
    temperature = statistics.fit_temperature(on_validation.outputs, on_validation.split.labels)
    return report_page(records, task.class_names, scored, temperature)


def report_page(records: Records, class_names: Sequence[str], scored: Scored, temperature: float) -> str:
    """Returns the report as HTML.

    Args:
      records: the run's records.
      class_names: in label order.
      scored: the test split of a finished run, or the validation split of an unfinished one.
      temperature: softmax temperature fitted on the validation split's logits.
    """
    confusion = np.asarray(scored.summary["confusion"], np.int64)
    per_class = statistics.class_figures(confusion)
    classes = [{"name": name, **entry._asdict()} for name, entry in zip(class_names, per_class, strict=True)]
    worst = sorted(classes, key=lambda entry: 2.0 if entry["f1"] is None else entry["f1"])[:TABLE_CLASSES]
    predictions = statistics.predict(scored.outputs)
    correct = predictions.labels == scored.split.labels
    after = statistics.reliability(statistics.predict(scored.outputs, temperature).confidences, correct)
    before = statistics.reliability(predictions.confidences, correct)
    mistakes, pairs, right = pictured(class_names, scored, confusion, predictions)
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
        diagrams=[diagram("Uncalibrated", before), diagram(f"Temperature {temperature:.3f}", after)],
        mistakes=mistakes,
        pairs=pairs,
        right=right,
        rights=int(correct.sum()),
        explained=scored.explainer and scored.explainer.method,
    )


def tiles(scored: Scored, temperature: float, ece_after: float, mean_f1: float, classes: int) -> list[Tile]:
    """Returns the metrics at the top of the report."""
    summary, confusion = scored.summary, np.asarray(scored.summary["confusion"], np.int64)
    count = summary["count"]
    low, high = statistics.wilson_interval(round(summary["accuracy"] * count), count)
    accuracies = [
        Tile(
            f"{scored.name.capitalize()} accuracy",
            f"{summary['accuracy']:.2%}",
            f"95% interval {low:.1%} to {high:.1%}, {count:,} {scored.unit}s",
        )
    ]
    if classes > 5:
        note = "true class among the five most probable ones"
        accuracies.append(Tile("Top-5 accuracy", f"{summary['top5']:.2%}", note))
    return [
        *accuracies,
        Tile("Loss", f"{summary['loss']:.4f}", "mean cross-entropy"),
        Tile("Balanced accuracy", percent(statistics.balanced_accuracy(confusion)), "mean recall over classes"),
        Tile("Mean F1", percent(mean_f1), f"over {classes} classes"),
        Tile("Calibration error", percent(summary["ece"]), f"{percent(ece_after)} at temperature {temperature:.3f}"),
    ]


def pictured(
    class_names: Sequence[str], scored: Scored, confusion: np.ndarray, predictions: statistics.Predictions
) -> tuple[list[Picture], list[dict[str, Any]], list[Picture]]:
    """Returns the most confident mistakes, the most confused pairs of classes, and, if explained, right predictions."""
    truth, predicted = scored.split.labels, predictions.labels
    wrong = np.flatnonzero(predicted != truth)
    wrong = wrong[np.argsort(-predictions.confidences[wrong], kind="stable")]
    pairs = statistics.confused_pairs(confusion, PAIRS)
    of_pair = [
        wrong[(truth[wrong] == pair.truth) & (predicted[wrong] == pair.predicted)][:PICTURES_A_PAIR] for pair in pairs
    ]
    right = np.flatnonzero(predicted == truth) if scored.explainer else np.zeros(0, np.int64)
    right = spread(right[np.argsort(truth[right], kind="stable")], RIGHT)
    shown = [row for rows in (wrong[:MISTAKES], *of_pair, right) for row in rows.tolist()]
    places = [(row, int(predicted[row])) for row in shown]
    uris, heat, spans = scored.uris(shown), scored.heat(places), scored.spans(places)

    def picture(row: int) -> Picture:
        true_name, name = class_names[truth[row]], class_names[predicted[row]]
        confidence = float(predictions.confidences[row])
        described = f"{scored.called(row)}: {true_name}, predicted as {name} with {confidence:.0%} confidence"
        own, text = (found[row, int(predicted[row])] for found in (heat, spans))
        note = percent(confidence, 0)
        return Picture(uris[row], described, true_name, name, note, scored.file(row), own, text)  # type: ignore[arg-type]

    images = confusion.sum(1)
    confused = [
        {
            "truth": class_names[pair.truth],
            "predicted": class_names[pair.predicted],
            "count": pair.images,
            "images": int(images[pair.truth]),
            "pictures": [picture(row) for row in rows.tolist()],
        }
        for pair, rows in zip(pairs, of_pair, strict=True)
    ]
    return [picture(row) for row in wrong[:MISTAKES].tolist()], confused, [picture(row) for row in right.tolist()]


def matrix(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns the confusion matrix int [classes, classes], or its rows and columns with the most mistakes."""
    labels = statistics.confused_classes(confusion, MATRIX_CLASSES)
    fractions = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    worst = max(float((fractions - np.diag(np.diag(fractions))).max()), 1e-9)

    def cell(truth: int, predicted: int) -> dict[str, Any]:
        fraction, hit = float(fractions[truth, predicted]), truth == predicted
        text = (
            f"{class_names[truth]}: correct" if hit else f"{class_names[truth]} predicted as {class_names[predicted]}"
        )
        return {
            "count": int(confusion[truth, predicted]),
            "hit": hit,
            "weight": 0.7 * fraction if hit else 0.75 * (fraction / worst) ** 0.8,
            "text": f"{text}, {confusion[truth, predicted]:,} of {confusion[truth].sum():,} ({fraction:.1%})",
        }

    pairs = statistics.confused_pairs(confusion, 3)
    often = "; ".join(
        f"{class_names[truth]} predicted as {class_names[predicted]} ({n:,})" for truth, predicted, n in pairs
    )
    return {
        "names": [class_names[label] for label in labels],
        "left_out": len(confusion) - len(labels),
        "cells": [[cell(truth, predicted) for predicted in labels] for truth in labels],
        "described": f"Confusion matrix of {len(labels)} classes. Most frequent confusions: {often or 'none'}.",
    }


def diagram(title: str, reliability: statistics.Reliability) -> dict[str, Any]:
    """Lays out a reliability diagram in its template's 290 x 212, and 36 high bars of the images per bin."""
    bins, most = len(reliability.counts), reliability.counts.max()
    width = 290 / bins
    drawn = []
    for index in np.flatnonzero(reliability.counts):
        confidence, accuracy = reliability.confidences[index], reliability.accuracies[index]
        count = int(reliability.counts[index])
        upper, lower = max(confidence, accuracy), min(confidence, accuracy)
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
                "text": f"{count:,} images: mean confidence {confidence:.1%}, accuracy {accuracy:.1%}",
            }
        )
    words = "; ".join(str(entry["text"]) for entry in drawn)
    described = f"Reliability diagram, {title.lower()}: calibration error {reliability.ece:.1%}. {words}"
    return {"title": title, "ece": reliability.ece, "bins": drawn, "described": described}
