"""Choice and order of the rows of a split, as pure functions of the seed, so that resuming is exact."""

from collections.abc import Sequence

import numpy as np

from sft_jax.errors import UserError

# The number of rows drawn from a class of n images is proportional to n to this power.
BALANCE = {"none": 1.0, "sqrt": 0.5, "full": 0.0}
# Extends the run's seed for the order in which the images of a class take turns, and for that of batches of similar
# lengths.
_TURNS, _BATCHES = (0, 1), (0, 2)
# Batches among whose rows similar lengths are put together, as in transformers' LengthGroupedSampler.
GROUPED = 50


def epoch_order(
    seed: int, epoch: int, labels: np.ndarray, batch_size: int, balance: str = "none", repeats: int = 1
) -> np.ndarray:
    """Returns a random order of the rows of one epoch, in full batches.

    With "none" the last n % batch_size rows, different ones each epoch, are dropped. Otherwise the same number of rows
    is divided among the classes by `BALANCE`. The images of a class take turns within and across epochs, so that their
    numbers of draws never differ by more than one.

    Args:
      seed, epoch: determine the order.
      labels: int [n].
      batch_size: rows per batch.
      balance: a key of `BALANCE`.
      repeats: how often each of the first n / repeats rows of this order appears, side by side (repeated augmentation:
        Hoffer et al., 2020, arXiv:1901.09335).

    Returns:
      int32 [n // batch_size, batch_size].

    Raises:
      UserError: there is not even one full batch.
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
        by_class = (_window(turns[labels[turns] == label], epoch, count) for label, count in enumerate(drawn) if count)
        rows = generator.permutation(np.concatenate(list(by_class)))
    return np.repeat(rows, repeats)[: len(rows)].astype(np.int32).reshape(steps, batch_size)


def by_length(order: np.ndarray, lengths: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Returns the rows of `order` int [steps, batch], a random order, in batches of similar lengths, at random again.

    Within every `GROUPED` batches the rows are sorted by `lengths` int [n], so that batches need little padding.
    """
    groups = [order[first : first + GROUPED] for first in range(0, len(order), GROUPED)]
    together = [group.ravel()[np.argsort(lengths[group.ravel()], kind="stable")] for group in groups]
    batches = np.concatenate(together).reshape(order.shape)
    return batches[_generator(seed, epoch, *_BATCHES).permutation(len(batches))]


def class_draws(labels: np.ndarray, total: int, balance: str) -> np.ndarray:
    """Divides `total` rows among the classes: int [highest label + 1], rounded from their exact proportions."""
    counts = np.bincount(labels)
    weights = np.where(counts, counts.astype(np.float64) ** BALANCE[balance], 0.0)
    exact = total * weights / weights.sum()
    rounded = np.floor(exact).astype(int)
    # Largest remainder method.
    rounded[np.argsort(rounded - exact, kind="stable")[: total - rounded.sum()]] += 1
    return rounded


def _window(rows: np.ndarray, epoch: int, count: int) -> np.ndarray:
    """Returns window number `epoch` of length `count` of the infinitely repeated `rows`."""
    return rows[(epoch * count + np.arange(count)) % len(rows)]


def _generator(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))


def eval_order(n: int, batch_size: int, lengths: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows 0..n-1 in full batches, int32 [steps, batch_size], and a bool mask, False for padding.

    They are in this order, or sorted by `lengths` int [n].
    """
    steps = -(-n // batch_size)
    places = np.arange(steps * batch_size).reshape(steps, batch_size)
    mask = places < n
    rows = np.arange(n) if lengths is None else np.argsort(lengths, kind="stable")
    return rows[np.where(mask, places, 0)].astype(np.int32), mask


def _rows_by_class(labels: np.ndarray, seed: int) -> list[np.ndarray]:
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    return [shuffled[labels[shuffled] == label] for label in np.unique(labels)]


def per_class(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draws `count` images of each class; returns their sorted rows. Raises UserError if a class has fewer."""
    groups = _rows_by_class(labels, seed)
    fewest = min(len(rows) for rows in groups)
    if fewest < count:
        raise UserError(f"config.data.per_class={count} is too large: a class has only {fewest} training images")
    return np.sort(np.concatenate([rows[:count] for rows in groups]))


def folds(labels: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
    """Splits all rows into `count` stratified folds, whose sizes differ by at most one, per class and in total.

    Returns:
      the sorted rows of each fold; every row is in exactly one.

    Raises:
      UserError: a class has fewer rows than there are folds.
    """
    groups = _rows_by_class(labels, seed)
    fewest = min(len(rows) for rows in groups)
    if fewest < count:
        raise UserError(f"--folds {count}: a class has only {fewest} training images; use --folds {max(fewest, 1)}")
    return [np.sort(np.concatenate(groups)[first::count]) for first in range(count)]


def stratified(labels: np.ndarray, fractions: Sequence[float], seed: int) -> list[np.ndarray]:
    """Splits all rows into parts of about these `fractions`, class by class.

    Every part gets at least one row of each class that has as many rows as there are parts.

    Returns:
      the sorted rows of each part; every row is in exactly one.
    """
    parts: list[list[np.ndarray]] = [[] for _ in fractions]
    edges = np.cumsum(fractions) / sum(fractions)
    for rows in _rows_by_class(labels, seed):
        cuts = np.round(edges * len(rows)).astype(int)
        if len(rows) >= len(parts):
            # At least one row per part: a forward pass over the cuts, then a cap from the right.
            cuts = np.maximum(cuts, np.arange(1, len(parts) + 1))
            cuts = np.minimum(cuts, len(rows) - np.arange(len(parts) - 1, -1, -1))
        for part, piece in zip(parts, np.split(rows, cuts[:-1]), strict=True):
            part.append(piece)
    return [np.sort(np.concatenate(part)) for part in parts]


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """Returns at most `count` of `rows`, evenly spaced from the first to the last."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]
