"""Evaluates a network on images of other sources than its run's."""

import hashlib
import itertools
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sft_jax.data.crops import View
from sft_jax.data.crops import views as views_of
from sft_jax.data.dataset import Batch
from sft_jax.data.images.named import decoded
from sft_jax.data.sampling import eval_order
from sft_jax.data.sources.everything import Everything
from sft_jax.data.sources.listing import NAMED
from sft_jax.data.texts.reading import Text
from sft_jax.errors import UserError
from sft_jax.inference.network import BATCH
from sft_jax.inference.predictor import Classifier
from sft_jax.inference.texts import TextClassifier
from sft_jax.tasks import Task
from sft_jax.tasks.base import Kept

# Images whose outputs are added at a time.
CHUNK = 4096
# File names are limited to 255 bytes.
LONGEST_NAME = 150

Scored = tuple[list[np.ndarray], Batch]


class Total:
    """The metrics of a task over images that are added in parts."""

    def __init__(self, task: Task):
        self._task, self._compiled = task, jax.jit(task.sums)
        self._parts: list[tuple[np.ndarray, Batch]] = []
        self._sums: Any = None

    def add(self, outputs: np.ndarray, targets: Batch) -> None:
        """Adds images: the network's outputs [n, ...] and their targets."""
        if self._task.keeps_outputs:
            self._parts.append((outputs, targets))
            return
        sums = jax.device_get(self._compiled(outputs, targets, np.ones(len(outputs), bool)))
        sums = jax.tree.map(lambda leaf: leaf if np.issubdtype(leaf.dtype, np.integer) else leaf.astype(float), sums)
        self._sums = sums if self._sums is None else jax.tree.map(np.add, self._sums, sums)

    def figures(self) -> dict[str, Any]:
        """Returns `Task.summarize` of all images."""
        if not self._task.keeps_outputs:
            return self._task.summarize(self._sums)
        outputs = np.concatenate([part for part, _ in self._parts])
        return self._task.summarize(Kept(len(outputs), outputs, _joined([targets for _, targets in self._parts])))


def score(
    classifier: Classifier,
    images: Everything,
    *,
    flips: bool = False,
    crops: int = 1,
    after: Callable[[int, int], None],
) -> dict[str, Any]:
    """Evaluates a network on all of `images`, each once; returns metrics under the names of results.json.

    Args:
      classifier: the network and its preprocessing, which is the same as in `predict`.
      images: images with labels.
      flips, crops: test-time augmentation, with which the task's main metric is reported as well, see
        `Experiment.test`.
      after: called with the number of images done and the total.

    Raises:
      UserError: images cannot be read.
    """
    task = classifier.task
    views = views_of(crops, flips=flips)
    # The views whose outputs are averaged: the image alone; it and its mirror image; all crops.
    averaged = {"": 1} | ({"_flips": 2} if flips else {}) | ({"_crops": len(views)} if crops > 1 else {})
    totals = {name: Total(task) for name in averaged}
    done = 0
    blocks = _files(classifier, images, views) if images.paths else _arrays(classifier, images, views)
    for outputs, targets in _chunks(blocks):
        for name, count in averaged.items():
            totals[name].add(np.mean(outputs[:count], axis=0), targets)
        done += len(outputs[0])
        after(done, len(images))
    results, figure = task.results(totals.pop("").figures()), task.main().figure
    return results | {f"test_{figure}{name}": total.figures()[figure] for name, total in totals.items()}


def score_texts(
    classifier: TextClassifier, texts: Sequence[Text], targets: Batch, after: Callable[[int, int], None]
) -> dict[str, Any]:
    """Evaluates a network on texts with `targets` [n] by name, see `score`."""
    total = Total(classifier.task)
    for first in range(0, len(texts), CHUNK):
        block = slice(first, first + CHUNK)
        total.add(classifier.logits(texts[block]), {name: values[block] for name, values in targets.items()})
        after(min(first + CHUNK, len(texts)), len(texts))
    return classifier.task.results(total.figures())


def _logits(classifier: Classifier, squares: list[np.ndarray], views: Sequence[View]) -> list[np.ndarray]:
    return [classifier.square_logits(squares, place, mirrored=mirrored) for place, mirrored in views]


def _files(classifier: Classifier, images: Everything, views: Sequence[View]) -> Iterator[Scored]:
    """Yields, for at most `BATCH` images at a time, the outputs for each of their views, and their targets."""
    problems: list[str] = []
    place = {path: row for row, path in enumerate(images.paths)}
    readable = decoded(images.paths, classifier.preprocess.read, problems.append)
    while block := list(itertools.islice(readable, BATCH)):
        if problems:
            break
        rows = [place[path] for path, _ in block]
        targets = {name: values[rows] for name, values in images.targets.items()}
        yield _logits(classifier, [picture for _, picture in block], views), targets
    check_readable(problems)


def check_readable(problems: Sequence[str]) -> None:
    """Raises UserError if there are `problems`, lines about unreadable files."""
    if problems:
        more = " and perhaps more" if len(problems) > NAMED else ""
        raise UserError(f"{'; '.join(problems[:NAMED])}{more}; repair or remove unreadable files")


def _arrays(classifier: Classifier, images: Everything, views: Sequence[View]) -> Iterator[Scored]:
    for split in images.splits:
        order, mask = eval_order(len(split), BATCH)
        for batch, counted in zip(split.batches(order), mask, strict=True):
            targets = {name: batch[name][counted] for name in split.targets}
            yield _logits(classifier, list(batch["image"][counted]), views), targets


def _chunks(blocks: Iterator[Scored]) -> Iterator[Scored]:
    while chunk := list(itertools.islice(blocks, CHUNK // BATCH)):
        views = zip(*(outputs for outputs, _ in chunk), strict=True)
        yield [np.concatenate(view) for view in views], _joined([targets for _, targets in chunk])


def _joined(batches: list[Batch]) -> Batch:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def file_name(source: str, split: str | None) -> str:
    """Returns a source and split as part of a file name."""
    text = urllib.parse.quote(source if split is None else f"{source}_{split}", safe="")
    if len(text) > LONGEST_NAME:
        text = f"{hashlib.sha256(text.encode()).hexdigest()[:8]}_{text[-LONGEST_NAME:]}"
    return text
