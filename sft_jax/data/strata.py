"""Random choices of rows that keep the share of every class."""

from collections.abc import Sequence

import numpy as np

from sft_jax.errors import UserError


def _rows_by_class(labels: np.ndarray, seed: int) -> list[np.ndarray]:
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    return [shuffled[labels[shuffled] == label] for label in np.unique(labels)]


def per_class(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Sorted rows of `count` images of each class, drawn at random. Raises UserError where a class has fewer."""
    groups = _rows_by_class(labels, seed)
    fewest = min(len(rows) for rows in groups)
    if fewest < count:
        raise UserError(f"config.data.per_class={count}, but a class has only {fewest} training images")
    return np.sort(np.concatenate([rows[:count] for rows in groups]))


def folds(labels: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
    """Deals all rows out to `count` folds, whose sizes differ by one at most: those of a class do, and those of all.

    Returns:
      sorted rows, one array a fold; together each row once.

    Raises:
      UserError: a class has fewer rows than there are folds.
    """
    groups = _rows_by_class(labels, seed)
    fewest = min(len(rows) for rows in groups)
    if fewest < count:
        raise UserError(f"--folds {count}, but a class has only {fewest} training images; use --folds {max(fewest, 1)}")
    return [np.sort(np.concatenate(groups)[first::count]) for first in range(count)]


def stratified(labels: np.ndarray, fractions: Sequence[float], seed: int) -> list[np.ndarray]:
    """Splits all rows in parts of about these `fractions`, class by class.

    Every part gets a row of each class that has as many rows as there are parts.

    Returns:
      sorted rows, one array a part; together each row once.
    """
    parts: list[list[np.ndarray]] = [[] for _ in fractions]
    edges = np.cumsum(fractions) / sum(fractions)
    for rows in _rows_by_class(labels, seed):
        cuts = np.round(edges * len(rows)).astype(int)
        if len(rows) >= len(parts):
            # One each at least, from the left and from the right.
            cuts = np.maximum(cuts, np.arange(1, len(parts) + 1))
            cuts = np.minimum(cuts, len(rows) - np.arange(len(parts) - 1, -1, -1))
        for part, piece in zip(parts, np.split(rows, cuts[:-1]), strict=True):
            part.append(piece)
    return [np.sort(np.concatenate(part)) for part in parts]
