"""Which rows of a split are seen, and in which order: pure functions of the seed, so that resuming is exact."""

from collections.abc import Sequence

import numpy as np

from sft_jax.errors import UserError

# A class of n images has a share of the rows of an epoch in proportion to n to this power.
BALANCE = {"none": 1.0, "sqrt": 0.5, "full": 0.0}
# Added to a run's seed, it decides the order in which the images of a class take turns.
_TURNS = (0, 1)


def epoch_order(seed: int, epoch: int, labels: np.ndarray, batch_size: int, balance: str = "none") -> np.ndarray:
    """A random order of the rows of one epoch, in full batches.

    With "none" the n % batch_size rows at its end, other ones each time, are left out. Else every class has its share
    of the same number of rows, see `BALANCE`; its images take turns, in this epoch and from epoch to epoch: at no time
    was one of them drawn two times more often than another one.

    Args:
      seed, epoch: decide the order.
      labels: int [n].
      batch_size: rows of a batch.
      balance: a key of `BALANCE`.

    Returns:
      int32 [n // batch_size, batch_size].

    Raises:
      UserError: there is no full batch.
    """
    n = len(labels)
    if n < batch_size:
        raise UserError(f"batch_size={batch_size}, but there are only {n} training images; use --config.batch_size={n}")
    generator = _generator(seed, epoch)
    steps = n // batch_size
    if balance == "none":
        rows = generator.permutation(n)[: steps * batch_size]
    else:
        drawn = class_draws(labels, steps * batch_size, balance)
        turns = _generator(seed, *_TURNS).permutation(n)
        own = (_window(turns[labels[turns] == label], epoch, count) for label, count in enumerate(drawn) if count)
        rows = generator.permutation(np.concatenate(list(own)))
    return rows.astype(np.int32).reshape(steps, batch_size)


def class_draws(labels: np.ndarray, total: int, balance: str) -> np.ndarray:
    """How many of `total` rows are of each class, int [highest label + 1]: whole numbers next to their shares."""
    counts = np.bincount(labels)
    weights = np.where(counts, counts.astype(np.float64) ** BALANCE[balance], 0.0)
    exact = total * weights / weights.sum()
    found = np.floor(exact).astype(int)
    # The largest remainders are rounded up.
    found[np.argsort(found - exact, kind="stable")[: total - found.sum()]] += 1
    return found


def _window(rows: np.ndarray, epoch: int, count: int) -> np.ndarray:
    """The next `count` of `rows`, which are repeated for ever, after `epoch` times as many."""
    return rows[(epoch * count + np.arange(count)) % len(rows)]


def _generator(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))


def eval_order(n: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """All rows 0..n-1 in full batches: int32 [steps, batch_size], and bool of the same shape, False on the padding."""
    steps = -(-n // batch_size)
    rows = np.arange(steps * batch_size, dtype=np.int32).reshape(steps, batch_size)
    mask = rows < n
    return np.where(mask, rows, np.int32(0)), mask


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
