"""Evaluates a network on images of other sources than its run's."""

import hashlib
import itertools
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from sft_jax.data.images.named import decoded
from sft_jax.data.sampling import eval_order
from sft_jax.data.sources.everything import Everything
from sft_jax.data.sources.listing import NAMED
from sft_jax.errors import UserError
from sft_jax.inference.predictor import BATCH, Classifier
from sft_jax.tasks.classification import Classification, EvalSums, eval_sums

# Images whose logits are summed at a time.
CHUNK = 4096
# File names are limited to 255 bytes.
LONGEST_NAME = 150

Scored = tuple[list[np.ndarray], np.ndarray]


def score(
    classifier: Classifier, images: Everything, *, flips: bool, after: Callable[[int, int], None]
) -> dict[str, Any]:
    """Evaluates a network on all of `images`, each once; returns metrics under the names of results.json.

    Args:
      classifier: the network and its preprocessing, which is the same as in `predict`.
      images: images with labels.
      flips: whether to report accuracy also with the logits of the mirror images added.
      after: called with the number of images done and the total.

    Raises:
      UserError: images cannot be read.
    """
    totals: dict[bool, EvalSums] = {}
    done = 0
    blocks = _files(classifier, images, flips) if images.paths else _arrays(classifier, images, flips)
    for logits, labels in _chunks(blocks):
        for mirrored in (False, True)[: 1 + flips]:
            mean = np.mean(logits[: 1 + mirrored], axis=0)
            arguments = (mean, labels, np.ones(len(labels), bool))
            sums = jax.device_get(jax.jit(eval_sums)(*arguments))
            sums = sums._replace(loss=sums.loss.astype(np.float64), calibration=sums.calibration.astype(np.float64))
            totals[mirrored] = jax.tree.map(np.add, totals[mirrored], sums) if mirrored in totals else sums
        done += len(labels)
        after(done, len(images))
    task = Classification(tuple(classifier.class_names))
    results = task.results(task.summarize(totals[False]))
    if flips:
        results["test_accuracy_flips"] = task.summarize(totals[True])["accuracy"]
    return results


def _files(classifier: Classifier, images: Everything, flips: bool) -> Iterator[Scored]:
    """Yields, for at most `BATCH` images at a time, their logits, those of their mirror images, and their labels."""
    problems: list[str] = []
    label = dict(zip(images.paths, images.labels, strict=True))
    readable = decoded(images.paths, classifier.preprocess.read, problems.append)
    while block := list(itertools.islice(readable, BATCH)):
        if problems:
            break
        views = [[picture for _, picture in block]]
        if flips:
            views.append([picture[:, ::-1] for picture in views[0]])
        labels = np.array([label[path] for path, _ in block], np.int32)
        yield [classifier.square_logits(view) for view in views], labels
    if problems:
        more = " and perhaps more" if len(problems) > NAMED else ""
        raise UserError(f"{'; '.join(problems[:NAMED])}{more}; repair or remove unreadable files")


def _arrays(classifier: Classifier, images: Everything, flips: bool) -> Iterator[Scored]:
    for split, positions in images.splits:
        order, mask = eval_order(len(split), BATCH)
        for batch, counted in zip(split.batches(order), mask, strict=True):
            block, labels = batch["image"][counted], batch["label"][counted]
            views = [block, block[:, :, ::-1]] if flips else [block]
            yield [classifier.square_logits(list(view)) for view in views], positions[labels]


def _chunks(blocks: Iterator[Scored]) -> Iterator[Scored]:
    while chunk := list(itertools.islice(blocks, CHUNK // BATCH)):
        views = zip(*(logits for logits, _ in chunk), strict=True)
        yield [np.concatenate(view) for view in views], np.concatenate([labels for _, labels in chunk])


def file_name(source: str, split: str | None) -> str:
    """Returns a source and split as part of a file name."""
    text = urllib.parse.quote(source if split is None else f"{source}_{split}", safe="")
    if len(text) > LONGEST_NAME:
        text = f"{hashlib.sha256(text.encode()).hexdigest()[:8]}_{text[-LONGEST_NAME:]}"
    return text
