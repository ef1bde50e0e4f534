"""A split of which every device holds a share, and the exchange of examples between devices before each epoch.

All devices together hold the split once, and during an epoch a second time, in the order in which they use it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sft_jax.data.dataset import Split
from sft_jax.data.rows import Rows, flat_rows
from sft_jax.runtime.devices import AXIS, Devices

# Shares that a device holds while examples are exchanged: its own, one that passes through, those it will use, and what
# is added to these.
COPIES = 4


class Shares:
    """The share of each device, of consecutive examples.

    Attributes:
      bytes: of the arrays on each device, in an epoch.
    """

    def __init__(self, split: Split, devices: Devices):
        self._devices = devices
        # The last shares are filled up with the last example, which is not used twice.
        places = np.minimum(np.arange(devices.whole_batch(len(split))), len(split) - 1)
        own = next(split.batches(devices.local_batch(places[None])))
        self._rows = jax.tree.map(
            lambda values: devices.shard_local(values, flat=True),
            {name: flat_rows(array[None], axes=2) for name, array in own.items()},
        )
        self.bytes = 2 * devices.stored_bytes(self._rows, sharded=True)
        self._exchange = devices.compile(_exchange, sharded=(True, True), gather=False)

    def in_order(self, order: np.ndarray) -> dict[str, Rows]:
        """Moves the examples of `order` int32 [steps, batch] to the devices that use them.

        Returns:
          arrays by name, for each device [steps * local batch] examples.
        """
        return self._devices.run(self._exchange, self._rows, self._devices.shard(order))


def _exchange(shares: dict[str, Rows], order: jax.Array) -> dict[str, Rows]:
    """Passes every share once around all devices, each of which picks what it needs: int32 `order` [steps, batch]."""
    device, count = lax.axis_index(AXIS), lax.axis_size(AXIS)
    wanted = order.reshape(-1)

    def pick(turn, carry):
        passing, picked = carry
        each = len(next(iter(jax.tree.leaves(passing))))
        place = wanted - (device - turn) % count * each
        is_here = (place >= 0) & (place < each)

        def add(picked, passing):
            mask = is_here.reshape(-1, *[1] * (passing.ndim - 1))
            return jnp.where(mask, passing[jnp.clip(place, 0, each - 1)], picked)

        picked = jax.tree.map(add, picked, passing)
        ring = [(source, (source + 1) % count) for source in range(count)]
        return lax.ppermute(passing, AXIS, ring), picked

    nothing = jax.tree.map(lambda rows: jnp.zeros((len(wanted), *rows.shape[1:]), rows.dtype), shares)
    return lax.fori_loop(0, count, pick, (shares, nothing))[1]
