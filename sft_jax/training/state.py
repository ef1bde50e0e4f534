"""What training changes, and its form on disk: one flat dictionary of arrays."""

from collections.abc import Collection, Mapping
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
      params: flat dictionary of float32 parameters, those that are not trained included.
      batch_stats: flat dictionary of batch norm's running means and variances.
      opt_state: of the optax transformation, for the parameters that are trained.
      ema: moving averages of `params` and `batch_stats` together; empty where none are kept.
      anchor: the parameters that L2-SP pulls towards; empty without it.
    """

    step: jax.Array
    params: Arrays
    batch_stats: Arrays
    opt_state: Any
    ema: Arrays = struct.field(default_factory=dict)
    anchor: Arrays = struct.field(default_factory=dict)

    @classmethod
    def create(
        cls,
        params: Mapping[str, Any],
        batch_stats: Mapping[str, Any],
        optimizer: optax.GradientTransformation,
        *,
        trained: Collection[str] | None = None,
        ema: bool = False,
        anchored: Collection[str] = (),
    ) -> "TrainState":
        """The state before the first step, in arrays of its own: the train step may then donate them.

        Args:
          params: see above.
          batch_stats: see above.
          optimizer: of the parameters named in `trained`.
          trained: None for all.
          ema: whether moving averages are kept.
          anchored: the parameters whose values of now L2-SP pulls towards.
        """

        def copies(arrays: Mapping[str, Any]) -> Arrays:
            return {key: jnp.array(leaf) for key, leaf in arrays.items()}

        params, batch_stats = copies(params), copies(batch_stats)
        opt_state = optimizer.init({key: leaf for key, leaf in params.items() if trained is None or key in trained})
        averages = copies({**params, **batch_stats}) if ema else {}
        anchor = copies({key: params[key] for key in anchored})
        return cls(jnp.zeros((), jnp.int32), params, batch_stats, opt_state, averages, anchor)


def to_arrays(state: Any) -> Arrays:
    """The leaves of `state` under their paths, as "params/fc.kernel" or "opt_state/1/0/trace/fc.kernel"."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def from_arrays(like: TrainState, arrays: Mapping[str, np.ndarray]) -> TrainState:
    """The inverse of `to_arrays`: a state of the structure of `like`."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: arrays[_name(path)], like)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
