"""Data parallelism over all devices, other processes' included. The only file that says pmap, mesh or sharding."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import psutil
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sft_jax.errors import UserError
from sft_jax.runtime import processes

AXIS = "data"


class Devices:
    """The devices of a run, and how arrays get to them and programs run on all of them at once.

    Of several processes each has arrays on its own devices only, and gives programs its own part of what is split.
    """

    def __init__(self, devices: list[jax.Device] | None = None):
        # Those of one process side by side, as pmap wants them.
        self.devices = devices or sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        self.count = len(self.devices)
        self._own = [device for device in self.devices if device.process_index == jax.process_index()]
        self._first = self.devices.index(self._own[0])
        mesh = Mesh(np.array(self._own), (AXIS,))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._sharded = NamedSharding(mesh, PartitionSpec(AXIS))

    def check_batch(self, batch_size: int, parts: int = 1) -> None:
        """Raises UserError where the batch does not split evenly: pmap would run on fewer devices and say nothing.

        `parts` are those in which each device computes its share.
        """
        unit = self.count * parts
        if batch_size % unit:
            lower = batch_size // unit * unit
            better = " or ".join(str(size) for size in (lower, lower + unit) if size)
            raise UserError(
                f"batch_size={batch_size} does not divide evenly over {self.count} devices"
                f"{f' in {parts} parts (optimizer.accumulate)' if parts > 1 else ''}; use --config.batch_size={better}"
            )

    def whole_batch(self, batch_size: int) -> int:
        """The smallest batch of at least `batch_size` images that divides evenly over the devices."""
        return -(-batch_size // self.count) * self.count

    def replicate(self, tree: Any) -> Any:
        """A whole copy of every array on each device of this process."""
        return jax.device_put(tree, self._replicated)

    def local_batch(self, batches: np.ndarray) -> np.ndarray:
        """[steps, batch, ...] -> [steps, part, ...]: what the devices of this process have of every batch."""
        share = batches.shape[1] // self.count
        return batches[:, self._first * share : (self._first + len(self._own)) * share]

    def shard(self, batches: np.ndarray) -> jax.Array:
        """[steps, batch, ...] -> [own devices, steps, share, ...]: each device has its contiguous share of a batch."""
        return self.shard_local(self.local_batch(batches))

    def shard_local(self, parts: np.ndarray, *, flat: bool = False) -> jax.Array:
        """`shard` of what `local_batch` gives.

        With `flat` the result is [own devices, steps * share, ...].
        """
        steps, part, *rest = parts.shape
        own = len(self._own)
        shares = np.moveaxis(parts.reshape(steps, own, part // own, *rest), 1, 0)
        leading = (own, -1) if flat else (own, steps, part // own)
        return jax.device_put(shares.reshape(*leading, *rest), self._sharded)

    def compile(
        self, program: Callable, *, sharded: tuple[Any, ...], donate: tuple[int, ...] = (), gather: bool = True
    ) -> Callable:
        """Compiles `program` for all devices.

        Args:
          program: of one device's share.
          sharded: for each argument, or each of its leaves, whether it has a leading axis of devices, which is taken
            off; the others are replicated.
          donate: positions of the arguments whose memory the results may take.
          gather: results are replicated: the program has to make them equal on all devices. Without it they have a
            leading axis of this process's devices instead.
        """
        return jax.pmap(
            program,
            axis_name=AXIS,
            in_axes=jax.tree.map(lambda is_sharded: 0 if is_sharded else None, sharded),
            out_axes=None if gather else 0,
            devices=self.devices,
            donate_argnums=donate,
        )

    def free_bytes(self) -> int:
        """Memory left on the fullest device; for CPU devices, which share the machine's, their part of what is free."""
        statistics = [device.memory_stats() for device in self._own]
        if all(found and "bytes_limit" in found for found in statistics):
            free = min(found["bytes_limit"] - found["bytes_in_use"] for found in statistics if found)
        else:
            free = psutil.virtual_memory().available // len(self._own)
        return min(processes.all_gather_objects(free))

    def __str__(self) -> str:
        several = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
        return f"{self.count} x {self.devices[0].device_kind}{several}"
