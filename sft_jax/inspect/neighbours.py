"""Nearest neighbours in the space of the features, and examples that have none nearby."""

from typing import NamedTuple

import numpy as np

from sft_jax.inspect.finding import Finding

# Neighbours of each example that are looked at; the distance of the last one says whether it is an outlier.
NEAREST = 10
# Distances further above the upper quartile than this many interquartile ranges are outliers (Tukey, 1977).
FENCE = 1.5


class Neighbours(NamedTuple):
    """The nearest other examples of each, the nearest first.

    Attributes:
      rows: int [n, k].
      distances: between features of length 1, 0 to 2, [n, k].
    """

    rows: np.ndarray
    distances: np.ndarray


def neighbours(features: np.ndarray) -> Neighbours:
    """Finds up to `NEAREST` other examples for each of `features` [n, channels]."""
    from sklearn.neighbors import NearestNeighbors

    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(lengths, np.finfo(np.float32).tiny)
    count = min(NEAREST, len(unit) - 1)
    search = NearestNeighbors(n_neighbors=count + 1, algorithm="brute").fit(unit)
    distances, rows = search.kneighbors(unit)
    # Each is among its own neighbours, though not always first if it has copies; or not at all, if many.
    own = rows == np.arange(len(unit))[:, None]
    own[~own.any(1), -1] = True
    return Neighbours(rows[~own].reshape(-1, count), distances[~own].reshape(-1, count))


def outliers(near: Neighbours, notices: list[str], unit: str = "image") -> list[Finding]:
    """Finds examples, each a `unit`, whose `NEAREST`th neighbour is far away (Sun et al., 2022, arXiv:2204.06507)."""
    if near.rows.shape[1] < NEAREST:
        notices.append(f"outliers not looked for: they need more than {NEAREST} {unit}s")
        return []
    far = near.distances[:, -1]
    lower, upper = np.percentile(far, (25, 75))
    limit = upper + FENCE * (upper - lower)
    return [Finding(int(row), "outlier", float(far[row]), "") for row in np.flatnonzero(far > limit)]
