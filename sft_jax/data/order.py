"""In which order images are seen: pure functions, so that a resumed run continues exactly where it stopped."""

import numpy as np

from sft_jax.errors import UserError


def epoch_order(seed: int, epoch: int, n: int, batch_size: int) -> np.ndarray:
    """A random order of the rows 0..n-1 for one epoch, in full batches.

    The n % batch_size rows at its end, other ones each time, are left out.

    Returns:
      int32 [n // batch_size, batch_size].

    Raises:
      UserError: there is no full batch.
    """
    if n < batch_size:
        raise UserError(f"batch_size={batch_size}, but there are only {n} training images; use --config.batch_size={n}")
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    steps = n // batch_size
    return generator.permutation(n)[: steps * batch_size].astype(np.int32).reshape(steps, batch_size)


def eval_order(n: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """All rows 0..n-1 in full batches: int32 [steps, batch_size], and bool of the same shape, False on the padding."""
    steps = -(-n // batch_size)
    rows = np.arange(steps * batch_size, dtype=np.int32).reshape(steps, batch_size)
    mask = rows < n
    return np.where(mask, rows, np.int32(0)), mask
