"""Data parallelism over all devices of all processes. Only this module uses pmap, meshes and shardings."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
import psutil
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sft_jax.errors import UserError
from sft_jax.runtime import processes

AXIS = "data"


class Devices:
    """The devices of a run; moves arrays to them and compiles programs for all of them.

    With several processes, each holds arrays on its own devices only and passes its own part of sharded arguments.

    Attributes:
      devices: of all processes, in order.
      count: their number.
      apart: whether they have memory and cores of their own, as GPUs and TPUs do.
    """

    def __init__(self, devices: list[jax.Device] | None = None):
        # Grouped by process, as pmap requires.
        self.devices = devices or sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        self.count = len(self.devices)
        self.apart = self.devices[0].platform != "cpu"
        self._own = [device for device in self.devices if device.process_index == jax.process_index()]
        self._first = self.devices.index(self._own[0])
        mesh = Mesh(np.array(self._own), (AXIS,))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._sharded = NamedSharding(mesh, PartitionSpec(AXIS))

    def all_or_none(self) -> AbstractContextManager[None]:
        """Raises a UserError that occurs in the context in any process in all of them."""
        return processes.all_or_none()

    def check_same(self, facts: Mapping[str, Any]) -> None:
        """Raises UserError if the JSON-serialisable `facts` differ between processes."""
        processes.check_same(facts)

    def largest(self, number: float) -> float:
        """Returns the maximum of the processes' numbers, so that they decide alike."""
        return processes.all_max(number)[0]

    def check_batch(self, batch_size: int, parts: int = 1) -> None:
        """Raises UserError if the batch does not divide evenly; pmap would silently run on fewer devices.

        `parts` is the number of micro-batches in which each device computes its part.
        """
        unit = self.count * parts
        if batch_size % unit:
            lower = batch_size // unit * unit
            better = " or ".join(str(size) for size in (lower, lower + unit) if size)
            raise UserError(
                f"batch_size={batch_size} does not divide evenly over {self.count} devices"
                f"{f' in {parts} micro-batches (optimizer.accumulate)' if parts > 1 else ''}; "
                f"use --config.batch_size={better}"
            )

    def whole_batch(self, batch_size: int) -> int:
        """Rounds `batch_size` up to a multiple of the number of devices."""
        return -(-batch_size // self.count) * self.count

    def replicate(self, tree: Any) -> Any:
        """Copies every array to each device of this process."""
        return jax.device_put(tree, self._replicated)

    def replicate_primary(self, tree: Any) -> Any:
        """Copies the primary process's arrays to each device of all processes, whose rounding may differ."""
        if not processes.is_multiprocess():
            return self.replicate(tree)
        leaves, structure = jax.tree.flatten(tree)
        arrays = processes.broadcast({str(place): leaf for place, leaf in enumerate(leaves)})
        return self.replicate(jax.tree.unflatten(structure, [arrays[str(place)] for place in range(len(leaves))]))

    def local_batch(self, batches: np.ndarray) -> np.ndarray:
        """Returns this process's part of every batch: [steps, batch, ...] -> [steps, process batch, ...]."""
        local = batches.shape[1] // self.count
        return batches[:, self._first * local : (self._first + len(self._own)) * local]

    def shard(self, batches: np.ndarray) -> jax.Array:
        """Shards batches over devices, contiguously: [steps, batch, ...] -> [own devices, steps, local batch, ...]."""
        return self.shard_local(self.local_batch(batches))

    def shard_local(self, parts: np.ndarray, *, flat: bool = False) -> jax.Array:
        """Completes `shard` for the result of `local_batch`.

        With `flat` the result is [own devices, steps * local batch, ...].
        """
        steps, part, *rest = parts.shape
        own = len(self._own)
        by_device = np.moveaxis(parts.reshape(steps, own, part // own, *rest), 1, 0)
        leading = (own, -1) if flat else (own, steps, part // own)
        return self._put(by_device.reshape(*leading, *rest))

    def _put(self, parts: np.ndarray) -> jax.Array:
        return jax.device_put(parts, self._sharded)

    def compile(
        self, program: Callable, *, sharded: tuple[Any, ...], donate: tuple[int, ...] = (), gather: bool = True
    ) -> Callable:
        """Compiles `program` for all devices.

        Args:
          program: the per-device program.
          sharded: for each argument, or each of its leaves, whether it has a leading axis of devices, which the program
            does not see; the others are replicated.
          donate: positions of the arguments whose memory the results may reuse.
          gather: whether results are replicated, i.e. the program makes them equal on all devices. Otherwise they have
            a leading axis of this process's devices.
        """
        return jax.pmap(
            program,
            axis_name=AXIS,
            in_axes=jax.tree.map(lambda is_sharded: 0 if is_sharded else None, sharded),
            out_axes=None if gather else 0,
            devices=self.devices,
            donate_argnums=donate,
        )

    def run(self, program: Callable, *arguments: Any) -> Any:
        """Calls a program that `compile` returned."""
        return program(*arguments)

    def free_bytes(self) -> int:
        """Returns the free memory of the fullest device; for CPU devices, the machine's divided by their number."""
        statistics = [device.memory_stats() for device in self._own]
        if all(stats and "bytes_limit" in stats for stats in statistics):
            free = min(stats["bytes_limit"] - stats["bytes_in_use"] for stats in statistics if stats)
        else:
            free = psutil.virtual_memory().available // len(self._own)
        return min(processes.all_gather_objects(free))

    def stored_bytes(self, tree: Any, *, sharded: bool = False) -> int:
        """Returns the bytes that each device takes to store the arrays, or shapes, of `tree`.

        On a TPU, whose tiles fill up the last two axes, it is an upper bound: the compiler may choose a layout with
        less padding. With `sharded` the first axis is that of the devices.
        """
        tiled = self.devices[0].platform == "tpu"
        return sum(_stored(leaf.shape[sharded:], leaf.dtype, tiled) for leaf in jax.tree.leaves(tree))

    def __str__(self) -> str:
        several = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
        return f"{self.count} x {self.devices[0].device_kind}{several}"


# A TPU's tile of an array, and of a vector.
TILE, VECTOR_TILE = (8, 128), (1024,)


def _stored(shape: tuple[int, ...], dtype: Any, tiled: bool) -> int:
    """Returns the bytes of an array, with the padding of its last two axes if it is `tiled`."""
    if tiled and shape:
        tile = VECTOR_TILE if len(shape) == 1 else TILE
        last = (-(-size // unit) * unit for size, unit in zip(shape[-len(tile) :], tile, strict=True))
        shape = (*shape[: -len(tile)], *last)
    return math.prod(shape) * dtype.itemsize


class AbsentDevices(Devices):
    """Devices that are not in this machine, from `topologies`: compiles for them, with shapes instead of arrays.

    What `replicate` and `shard` return, and what a compiled program takes, are `jax.ShapeDtypeStruct`s.
    """

    def __init__(self, devices: list[jax.Device], bytes_each: int):
        super().__init__(devices)
        self._bytes_each = bytes_each

    def replicate(self, tree: Any) -> Any:
        """Returns the shapes of the arrays."""
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), tree)

    def _put(self, parts: np.ndarray) -> Any:
        return jax.ShapeDtypeStruct(parts.shape, parts.dtype)

    def run(self, program: Callable, *arguments: Any) -> Any:
        """Returns the shapes of the results."""
        return jax.eval_shape(program, *arguments)

    def free_bytes(self) -> int:
        """Returns the memory of a device that a program can use."""
        return self._bytes_each
