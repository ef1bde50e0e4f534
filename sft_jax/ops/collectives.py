"""Sums, means and draws over a mapped axis, at no cost where it has one member or there is none.

On a single CPU device XLA (jax 0.10.2) carries out an all-reduce all the same: 5 ms a step for ResNet-18's gradients.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax


def all_mean(tree: Any, axis_name: str | None) -> Any:
    """`lax.pmean` over `axis_name`, which may be None."""
    return tree if _alone(axis_name) else lax.pmean(tree, axis_name)


def all_sum(tree: Any, axis_name: str | None) -> Any:
    """`lax.psum` over `axis_name`, which may be None."""
    return tree if _alone(axis_name) else lax.psum(tree, axis_name)


def own_rows(draw: Callable[[int], jax.Array], share: int, axis_name: str | None) -> jax.Array:
    """This device's `share` rows of `draw(total)`, which is drawn alike on each: the draws of an image then do not
    depend on the number of devices.
    """
    if _alone(axis_name):
        return draw(share)
    whole = draw(share * lax.axis_size(axis_name))
    return lax.dynamic_slice_in_dim(whole, lax.axis_index(axis_name) * share, share)


def reversed_batch(rows: jax.Array, axis_name: str | None) -> jax.Array:
    """The rows of the whole batch in reverse, of which each device holds an equal share."""
    if not _alone(axis_name):
        count = lax.axis_size(axis_name)
        rows = lax.ppermute(rows, axis_name, [(index, count - 1 - index) for index in range(count)])
    return rows[::-1]


def _alone(axis_name: str | None) -> bool:
    return axis_name is None or lax.axis_size(axis_name) == 1
