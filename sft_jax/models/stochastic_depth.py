"""Stochastic depth (Huang et al., 2016, arXiv:1603.09382): residual branches are dropped at random, per image."""

import jax
import jax.numpy as jnp

from sft_jax.ops.collectives import own_rows


def skip_factor(key: jax.Array | None, rate: float, position: int, batch: int, axis_name: str | None):
    """Returns the factor float32 [batch] of a residual branch: 0 if it is dropped, otherwise 1 / (1 - `rate`).

    Args:
      key: of the step; None in evaluation, where nothing is dropped.
      rate: probability that the branch is dropped.
      position: the block's position in the network, so that each draws its own numbers.
      batch: number of images of this device.
      axis_name: the mapped axis; draws do not depend on the number of devices.

    Returns:
      None if nothing can be dropped.
    """
    if key is None or not rate:
        return None
    own = jax.random.fold_in(key, position)
    draws = own_rows(lambda total: jax.random.bernoulli(own, 1 - rate, (total,)), batch, axis_name)
    return draws.astype(jnp.float32) / (1 - rate)


def branch_factors(
    key: jax.Array | None, rate: float, block: int, batch: int, axis_name: str | None
) -> list[jax.Array | None]:
    """Returns `skip_factor` of both residual branches of a block, which draw their own numbers."""
    return [skip_factor(key, rate, 2 * block + branch, batch, axis_name) for branch in (0, 1)]
