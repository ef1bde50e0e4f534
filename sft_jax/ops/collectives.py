"""Collectives and random draws over a mapped axis, free of cost if the axis has size 1 or is None.

XLA (jax 0.10.2) does not elide an all-reduce on a single CPU device: 5 ms per step for ResNet-18's gradients.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax


def all_mean(tree: Any, axis_name: str | None) -> Any:
    """Computes `lax.pmean` over `axis_name`, which may be None."""
    return tree if _alone(axis_name) else lax.pmean(tree, axis_name)


def all_sum(tree: Any, axis_name: str | None) -> Any:
    """Computes `lax.psum` over `axis_name`, which may be None."""
    return tree if _alone(axis_name) else lax.psum(tree, axis_name)


def own_rows(draw: Callable[[int], jax.Array], share: int, axis_name: str | None) -> jax.Array:
    """Returns this device's `share` rows of `draw(total)`, which is the same on all devices.

    The random draws for an image thus do not depend on the number of devices.
    """
    if _alone(axis_name):
        return draw(share)
    whole = draw(share * lax.axis_size(axis_name))
    return lax.dynamic_slice_in_dim(whole, lax.axis_index(axis_name) * share, share)


def reversed_batch(rows: jax.Array, axis_name: str | None) -> jax.Array:
    """Reverses the rows of the global batch, which is split evenly over the devices."""
    if not _alone(axis_name):
        count = lax.axis_size(axis_name)
        rows = lax.ppermute(rows, axis_name, [(index, count - 1 - index) for index in range(count)])
    return rows[::-1]


def _alone(axis_name: str | None) -> bool:
    return axis_name is None or lax.axis_size(axis_name) == 1
