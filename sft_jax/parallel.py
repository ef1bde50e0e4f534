"""Data parallelism over the devices of this machine. The only file that says pmap, mesh or sharding."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import psutil
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sft_jax.errors import UserError

AXIS = "data"


class Devices:
    """The devices of a run, and how arrays get to them and programs run on all of them at once."""

    def __init__(self, devices: list[jax.Device] | None = None):
        self.devices = devices or jax.local_devices()
        self.count = len(self.devices)
        mesh = Mesh(np.array(self.devices), (AXIS,))
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
        """A whole copy of every array on each device."""
        return jax.device_put(tree, self._replicated)

    def split(self, batches: np.ndarray, *, flat: bool = False) -> jax.Array:
        """[steps, batch, ...] -> [devices, steps, share, ...]: each device gets its contiguous share of every batch.

        With `flat` the result is [devices, steps * share, ...].
        """
        steps, batch, *rest = batches.shape
        shares = np.moveaxis(batches.reshape(steps, self.count, batch // self.count, *rest), 1, 0)
        leading = (self.count, -1) if flat else (self.count, steps, batch // self.count)
        return jax.device_put(shares.reshape(*leading, *rest), self._sharded)

    def compile(
        self, program: Callable, *, sharded: tuple[bool, ...], donate: tuple[int, ...] = (), gather: bool = True
    ) -> Callable:
        """`program` on all devices. Arguments marked in `sharded` have a leading axis of devices, which is taken off;
        the others are replicated, and so are all results: the program has to make them equal on all devices. Without
        `gather` results have a leading axis of devices instead.
        """
        return jax.pmap(
            program,
            axis_name=AXIS,
            in_axes=tuple(0 if split else None for split in sharded),
            out_axes=None if gather else 0,
            devices=self.devices,
            donate_argnums=donate,
        )

    def free_bytes(self) -> int:
        """Memory left on the fullest device; for CPU devices, which share the machine's, their part of what is free."""
        statistics = [device.memory_stats() for device in self.devices]
        if all(found and "bytes_limit" in found for found in statistics):
            return min(found["bytes_limit"] - found["bytes_in_use"] for found in statistics if found)
        return psutil.virtual_memory().available // self.count

    def __str__(self) -> str:
        return f"{self.count} x {self.devices[0].device_kind}"
