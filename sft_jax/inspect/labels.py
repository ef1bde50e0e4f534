"""Suspected wrong labels: confident learning on the cross-validated probabilities of a linear probe."""

from collections.abc import Sequence

import numpy as np

from sft_jax.data.sources.listing import some
from sft_jax.inspect.finding import Finding
from sft_jax.tasks.linear_probe import solve_head

# Folds of the cross-validation.
FOLDS = 5
# Principal components of the features that are used. All 1,280 of an EfficientNet-Lite0 took ten times as long to solve
# for, and found no more of the wrong labels.
COMPONENTS = 512
# A share of suspected labels above which the network, which may be untrained, is suspected rather.
MANY = 0.2


def probabilities(features: np.ndarray, labels: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Predicts the class of each example by a linear probe that has not seen its label.

    Args:
      features: [n, channels].
      labels: int [n], of at least two classes 0, 1, ..., each with at least two clusters.
      clusters: int [n]; examples of one cluster are copies, and are held out together.

    Returns:
      float64 [n, classes].
    """
    classes, folds = labels.max() + 1, _folds(labels, clusters)
    features = _principal(features)
    found = np.empty((len(labels), classes))
    for fold in range(folds.max() + 1):
        held, rest = folds == fold, folds != fold
        kernel, bias = solve_head(features[rest][:, None], labels[rest], classes)
        logits = features[held].astype(np.float64) @ kernel + bias
        logits -= logits.max(1, keepdims=True)
        found[held] = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return found


def _principal(features: np.ndarray) -> np.ndarray:
    """Returns the coordinates of `features` along their first `COMPONENTS` principal axes, which need no labels."""
    if features.shape[1] <= COMPONENTS:
        return features
    centred = features - features.mean(0)
    _, axes = np.linalg.eigh(centred.T.astype(np.float64) @ centred)
    return centred @ axes[:, -COMPONENTS:].astype(np.float32)


def _folds(labels: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Assigns each row to a fold, int [n]: the clusters of a class take turns."""
    _, first, inverse = np.unique(clusters, return_index=True, return_inverse=True)
    turns = np.empty(len(first), int)
    turns[np.argsort(labels[first], kind="stable")] = np.arange(len(first)) % FOLDS
    return turns[inverse]


def suspected(chances: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the rows of suspected wrong labels, those with the least probable label first.

    Their number is estimated by confident learning (Northcutt, Jiang and Chuang, 2021, arXiv:1911.00068, section 3.1):
    an example confidently belongs to a class if its probability is at least the mean of that of those with this
    label, and to the most probable class if there are several; examples that confidently belong to another class than
    their label's, which is not their most probable one, are counted. The rows are the same as those of cleanlab's
    `find_label_issues(filter_by="low_self_confidence")`.

    Args:
      chances: cross-validated probabilities, float [n, classes].
      labels: int [n]; every class occurs.
    """
    means = np.array([chances[labels == label, label].mean() for label in range(chances.shape[1])])
    # cleanlab's tolerance.
    confident = chances >= means - 1e-6
    best = np.where(confident, chances, -1.0).argmax(1)
    count = np.count_nonzero(confident.any(1) & (best != labels) & (chances.argmax(1) != labels))
    return np.argsort(chances[np.arange(len(labels)), labels], kind="stable")[:count]


def wrong_labels(
    features: np.ndarray,
    labels: np.ndarray,
    clusters: np.ndarray,
    class_names: Sequence[str],
    notices: list[str],
    unit: str = "image",
) -> list[Finding]:
    """Finds suspected wrong labels, see `suspected`.

    Args:
      features, labels, clusters: see `probabilities`, but any classes may be missing or have a single example.
      class_names: in label order.
      notices: receives a line about the probe's accuracy, and about classes whose labels cannot be tested.
      unit: what an example is called.
    """
    distinct = np.array([len(np.unique(clusters[labels == label])) for label in range(len(class_names))])
    enough = np.flatnonzero(distinct > 1)
    single = [class_names[label] for label in np.flatnonzero(distinct == 1).tolist()]
    if single:
        notices.append(f"labels not tested, because there is only one {unit} of the class: {some(single)}")
    if len(enough) < 2:
        notices.append(f"labels not tested: that takes two classes of at least two {unit}s each")
        return []
    rows = np.flatnonzero(np.isin(labels, enough))
    new = np.searchsorted(enough, labels[rows])
    chances = probabilities(features[rows], new, clusters[rows])
    own = chances[np.arange(len(rows)), new]
    found = suspected(chances, new)
    agrees = (chances.argmax(1) == new).mean()
    doubt = "; so many suspects say more of the features than of the labels" if len(found) > MANY * len(rows) else ""
    notices.append(f"a linear probe on the features agrees with {agrees:.1%} of the labels{doubt}")
    others = chances.copy()
    others[np.arange(len(rows)), new] = -1.0
    return [
        Finding(int(rows[place]), "label", float(1 - own[place]), class_names[int(enough[others[place].argmax()])])
        for place in found
    ]
