"""The report of a segmentation run: IoU per class, and pictures with their true and predicted masks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sft_jax.config import flatten
from sft_jax.data.crops import cropped
from sft_jax.data.dataset import Split
from sft_jax.data.images.mask import VOID
from sft_jax.data.sampling import spread
from sft_jax.inference.masks import colours, overlay
from sft_jax.report.page import Tile, run_page
from sft_jax.report.pictures import data_uri, images_of
from sft_jax.report.records import Records, Scored
from sft_jax.report.render import percent
from sft_jax.tasks.base import Batch
from sft_jax.tasks.segmentation import Segmentation
from sft_jax.tasks.segmentation_sums import EvalSums, summarize
from sft_jax.training.evaluator import PerExample
from sft_jax.training.experiment import Experiment

# Pictures shown, and pixels of masks among which they are chosen; masks take eight bytes a pixel.
WORST, BEST = 16, 4
MOST_PIXELS = 2**25


def looked_at(split: Split, size: int) -> Split:
    """Returns the images of `split` that the report looks at: all, or evenly spaced ones."""
    most = max(WORST + BEST, MOST_PIXELS // size**2)
    return split if len(split) <= most else split.take(spread(np.arange(len(split)), most))


def masks_of(experiment: Experiment) -> PerExample:
    """Computes true and predicted masks: float32 [n, 2, size, size], whole numbers."""

    def outputs(params, batch_stats, batch: Batch) -> jax.Array:
        seen = experiment.preprocess(batch)
        logits, _ = experiment.network.apply(params, batch_stats, seen["image"], train=False)
        return jnp.stack([seen["mask"].astype(jnp.float32), logits.argmax(-1).astype(jnp.float32)], 1)

    return PerExample(outputs, experiment.config.batch_size)


def page(records: Records, task: Segmentation, scored: Scored, on_validation: Scored) -> str:
    """Returns the report as HTML.

    Args:
      records: the run's records.
      task: the task.
      scored: the test split of a finished run, or the validation split of an unfinished one: the images that
        `looked_at` returns, with `masks_of` them.
      on_validation: the validation split; not used.
    """
    truth, predicted = (scored.outputs[:, place].astype(np.uint8) for place in (0, 1))
    overlaps = [_figures(*pair, len(task.class_names)) for pair in zip(truth, predicted, strict=True)]
    known = [row for row, figures in enumerate(overlaps) if figures is not None]
    order = sorted(known, key=lambda row: overlaps[row]["mean_iou"])  # type: ignore[index]
    values = flatten(records.record["config"])
    pictures = {
        row: _picture(task, scored, values, row, truth[row], predicted[row], overlaps[row])
        for row in {*order[:WORST], *order[-BEST:]}
    }
    return run_page(
        records,
        scored.name,
        tiles(scored),
        template="segmentation.html",
        classes=classes(task, scored),
        worst=[pictures[row] for row in order[:WORST]],
        best=[pictures[row] for row in order[: -BEST - 1 : -1]],
        looked_at=f"{len(truth):,}",
    )


def tiles(scored: Scored) -> list[Tile]:
    """Returns the metrics at the top of the report."""
    summary = scored.summary
    count = sum(value is not None for value in summary["per_class_iou"])
    return [
        Tile(
            f"{scored.name.capitalize()} mean IoU",
            percent(summary["mean_iou"], 2),
            f"mean over {count} classes, {summary['count']:,} images",
        ),
        Tile("Pixel accuracy", percent(summary["pixel_accuracy"], 2), "of pixels that have a class"),
        Tile("Mean accuracy", percent(summary["mean_accuracy"], 2), "mean over classes"),
        Tile("Loss", f"{summary['loss']:.4f}", "mean cross-entropy of pixels"),
    ]


def classes(task: Segmentation, scored: Scored) -> list[dict[str, Any]]:
    """Returns the rows of the table of classes, in their order."""
    summary, confusion = scored.summary, np.asarray(scored.summary["confusion"], np.int64)
    rows = []
    for label, name in enumerate(task.class_names):
        others = confusion[label].copy()
        others[label] = 0
        taken = int(others.argmax())
        part = others[taken] / max(confusion[label].sum(), 1)
        rows.append(
            {
                "name": name,
                "colour": "#{:02x}{:02x}{:02x}".format(*colours()[label]),
                "share": confusion[label].sum() / confusion.sum(),
                "iou": summary["per_class_iou"][label],
                "accuracy": summary["per_class_accuracy"][label],
                "taken_for": f"{task.class_names[taken]} ({part:.0%})" if part else "",
            }
        )
    return rows


def _figures(truth: np.ndarray, predicted: np.ndarray, count: int) -> dict[str, Any] | None:
    """Returns `summarize` of one picture; None if none of its pixels has a class."""
    valid = truth != VOID
    if not valid.any():
        return None
    confusion = np.bincount(truth[valid].astype(np.int64) * count + predicted[valid], minlength=count**2)
    units = np.stack([np.zeros((count, count)), confusion.reshape(count, count)])
    return summarize(EvalSums(np.int32(1), np.float64(0), units))  # type: ignore[arg-type]


def _picture(
    task: Segmentation,
    scored: Scored,
    values: Any,
    row: int,
    truth: np.ndarray,
    predicted: np.ndarray,
    figures: Any,
) -> dict[str, Any]:
    """Returns what the page shows of a picture: itself and both masks as data URIs, and its figures."""
    image = images_of(scored.split, [row])[row]
    seen = cropped(image[None], values["data.size"], values["data.crop_pct"])[0]
    if seen.shape[:2] != truth.shape:
        seen = np.asarray(Image.fromarray(seen).resize(truth.shape[::-1], Image.Resampling.BILINEAR))
    overlaps = {
        name: value for name, value in zip(task.class_names, figures["per_class_iou"], strict=True) if value is not None
    }
    lowest = sorted(overlaps, key=lambda name: overlaps[name])[:3]
    mean, called = figures["mean_iou"], scored.called(row)
    return {
        "uri": data_uri(seen),
        "truth": data_uri(overlay(seen, truth)),
        "predicted": data_uri(overlay(seen, np.where(truth == VOID, VOID, predicted).astype(np.uint8))),
        "iou": mean,
        "missed": ", ".join(f"{name} {overlaps[name]:.0%}" for name in lowest),
        "called": called,
        "described": f"{called}: mean IoU {mean:.0%}",
    }
