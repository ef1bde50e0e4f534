"""The report of a run with several labels per image: metrics per label, and mistakes with their images."""

import numpy as np

from sft_jax.data.sampling import spread
from sft_jax.report.page import Tile, run_page
from sft_jax.report.pictures import Picture, data_uris
from sft_jax.report.records import Records, Scored
from sft_jax.report.render import percent
from sft_jax.tasks.decoding import sigmoid
from sft_jax.tasks.multilabel import Multilabel

# With more labels, the table starts with the worst ones.
TABLE_LABELS = 25
MISTAKES = 25
# Labels given rightly that are shown with their heat maps.
RIGHT = 15


def page(records: Records, task: Multilabel, scored: Scored, on_validation: Scored) -> str:
    """Returns the report as HTML.

    Args:
      records: the run's records.
      task: the task.
      scored: the test split of a finished run, or the validation split of an unfinished one.
      on_validation: the validation split.
    """
    summary, truth = scored.summary, scored.split.targets["labels"].astype(bool)
    columns = (task.class_names, summary["per_class_ap"], summary["per_class_f1"], summary["thresholds"])
    labels = [
        {"name": name, "images": int(count), "ap": precision, "f1": f1, "threshold": threshold}
        for name, precision, f1, threshold, count in zip(*columns, truth.sum(0), strict=True)
    ]
    worst = sorted(labels, key=lambda entry: 2.0 if entry["ap"] is None else entry["ap"])[:TABLE_LABELS]
    right, rights = given_rightly(task, scored, truth) if scored.explainer else ([], 0)
    return run_page(
        records,
        scored.name,
        tiles(scored, truth),
        template="multilabel.html",
        labels=labels,
        worst=worst if len(labels) > TABLE_LABELS else [],
        mistakes=mistakes(task, scored, truth),
        right=right,
        rights=rights,
        explained=scored.explainer and scored.explainer.method,
        chosen_here=scored.name == on_validation.name,
    )


def tiles(scored: Scored, truth: np.ndarray) -> list[Tile]:
    """Returns the metrics at the top of the report."""
    summary = scored.summary
    return [
        Tile(
            f"{scored.name.capitalize()} mAP",
            percent(summary["map"], 2),
            f"mean average precision over labels, {summary['count']:,} images",
        ),
        Tile("Macro F1", percent(summary["macro_f1"], 2), "mean over labels"),
        Tile("Micro F1", percent(summary["micro_f1"], 2), "over all pairs of image and label"),
        Tile("Loss", f"{summary['loss']:.4f}", "mean over labels and images"),
        Tile("Labels", f"{truth.shape[1]:,}", f"{truth.sum(1).mean():.2f} per image"),
    ]


def mistakes(task: Multilabel, scored: Scored, truth: np.ndarray) -> list[Picture]:
    """Returns the wrong decisions whose probabilities are farthest on the wrong side of their thresholds."""
    probabilities, thresholds = sigmoid(scored.outputs), np.array(scored.summary["thresholds"])
    # From 0 at the threshold to 1 at a probability of 0 or 1.
    room = np.where(truth, thresholds, 1 - thresholds)
    margin = np.abs(probabilities - thresholds) / np.maximum(room, 1e-9)
    wrong = np.flatnonzero((probabilities >= thresholds) != truth)
    chosen = wrong[np.argsort(-margin.flat[wrong], kind="stable")][:MISTAKES]
    return _pictures(task, scored, truth, probabilities, np.stack(np.divmod(chosen, truth.shape[1]), 1))


def given_rightly(task: Multilabel, scored: Scored, truth: np.ndarray) -> tuple[list[Picture], int]:
    """Returns a sample of the labels given rightly, evenly spaced in the order of the labels, and their number."""
    probabilities = sigmoid(scored.outputs)
    places = np.argwhere((truth & (probabilities >= np.array(scored.summary["thresholds"]))).T)[:, ::-1]
    return _pictures(task, scored, truth, probabilities, spread(places, RIGHT)), len(places)


def _pictures(
    task: Multilabel, scored: Scored, truth: np.ndarray, probabilities: np.ndarray, chosen: np.ndarray
) -> list[Picture]:
    """Returns the pictures of decisions, int [n, 2]: row and label. Their heat maps are those of the label."""
    places = [(row, label) for row, label in chosen.tolist()]
    uris, heat = data_uris(scored.split, [row for row, _ in places]), scored.heat(places)

    def picture(row: int, label: int) -> Picture:
        name, probability = task.class_names[label], float(probabilities[row, label])
        own = ", ".join(task.class_names[other] for other in np.flatnonzero(truth[row])) or "none"
        given = probability >= scored.summary["thresholds"][label]
        said = f"{name} {'given' if given else 'missed'}"
        described = f"{scored.called(row)}: {said} with {probability:.0%}; labels: {own}"
        return Picture(uris[row], described, own, said, percent(probability, 0), scored.file(row), heat[row, label])

    return [picture(row, label) for row, label in places]
