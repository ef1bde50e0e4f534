"""Evaluates a network for pixels on pictures with masks of other sources than its run's."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sft_jax.data.images import mask
from sft_jax.data.images.named import decoded
from sft_jax.data.masks import make_preprocess
from sft_jax.data.sources.everything import Everything
from sft_jax.errors import UserError
from sft_jax.inference import masks
from sft_jax.inference.own_size import at_own_size
from sft_jax.inference.predictor import Classifier
from sft_jax.inference.scoring import Total, check_readable
from sft_jax.inference.windows import BATCH, WHOLE, View, check_view, outputs_of, seen_in_windows
from sft_jax.tasks.segmentation_sums import measures


def score_masks(
    classifier: Classifier, images: Everything, *, after: Callable[[int, int], None], view: View = WHOLE
) -> dict[str, Any]:
    """Evaluates a network on all of `images`, each once; returns metrics under the names of results.json.

    They are of the pixels that the network sees, as in the run's own evaluation. Under the same names with the prefix
    own_size_ are those of the pictures' pixels, for which outputs are interpolated as by `own_size.at_own_size`;
    own_size_unseen is the fraction of those with a class that the network does not see, which do not count. Only they
    depend on the windows of `view`.

    Args:
      classifier: the network and its preprocessing, which is the same as in `predict`.
      images: files, with masks.
      after: called with the number of images done and the total.
      view: how the network sees them.

    Raises:
      UserError: images or masks cannot be read, no pixel has a class, or the view does not suit the pictures.
    """
    check_view(view, classifier.preprocess)
    preprocess, classes = classifier.preprocess, len(classifier.class_names)
    seen = jax.jit(make_preprocess(preprocess.crop_pct, preprocess.size))
    total, confusion, unseen = Total(classifier.task), np.zeros((classes, classes), np.int64), 0
    truths = dict(zip(images.paths, images.targets["mask"], strict=True))
    problems: list[str] = []
    readable = decoded(
        images.paths, lambda path: (masks.read(path, preprocess), truths[path].values()), problems.append
    )
    done = labelled = 0
    while block := list(itertools.islice(readable, BATCH)):
        if problems:
            break
        outputs = outputs_of(classifier, [picture.square for _, (picture, _) in block], view)
        squares = (mask.squared(truth, preprocess.square) for _, (_, truth) in block)
        truth_of_squares = np.concatenate([seen(square[None]) for square in squares])
        total.add(outputs, {"mask": truth_of_squares})
        labelled += int((truth_of_squares != mask.VOID).sum())
        for own, (path, (picture, truth)) in zip(outputs, block, strict=True):
            if view.windows is None:
                found = at_own_size(own, preprocess, picture.shape)
            else:
                found = seen_in_windows(classifier, masks.pixels_of(path, preprocess), view)
            known = truth != mask.VOID
            counted = known & (found != mask.VOID)
            unseen += int(known.sum() - counted.sum())
            pairs = truth[counted].astype(np.int64) * classes + found[counted]
            confusion += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        done += len(block)
        after(done, len(images))
    check_readable(problems)
    if not (labelled and confusion.any()):
        raise UserError("no pixel that the network sees has a class, all are ignored; see data.ignore_index")
    own_size = measures(confusion) | {"unseen": unseen / max(unseen + int(confusion.sum()), 1)}
    results = classifier.task.results(total.figures())
    return results | {f"own_size_{name}": value for name, value in own_size.items()}
