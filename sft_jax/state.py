"""What training changes, and its form on disk: one flat dictionary of arrays."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

Arrays = dict[str, jax.Array]


class TrainState(struct.PyTreeNode):
    """Everything the next step depends on, besides the data and the seed.

    Attributes:
      step: int32, steps done so far.
      params: flat dictionary of float32 parameters.
      batch_stats: flat dictionary of batch norm's running means and variances.
      opt_state: of the optax transformation.
    """

    step: jax.Array
    params: Arrays
    batch_stats: Arrays
    opt_state: Any

    @classmethod
    def create(
        cls, params: Mapping[str, Any], batch_stats: Mapping[str, Any], optimizer: optax.GradientTransformation
    ) -> "TrainState":
        """The state before the first step, in arrays of its own: the train step may then donate them."""
        params, batch_stats = ({key: jnp.array(leaf) for key, leaf in part.items()} for part in (params, batch_stats))
        return cls(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))


def to_arrays(state: Any) -> Arrays:
    """The leaves of `state` under their paths, as "params/fc.kernel" or "opt_state/1/0/trace/fc.kernel"."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def from_arrays(like: TrainState, arrays: Mapping[str, np.ndarray]) -> TrainState:
    """The inverse of `to_arrays`: a state of the structure of `like`."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: arrays[_name(path)], like)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
