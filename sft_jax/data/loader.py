"""Moves the examples of a split to the devices: all at once if they fit, otherwise streamed in chunks."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from sft_jax.data.dataset import ArraySplit, Batch, Split
from sft_jax.runtime import processes
from sft_jax.runtime.devices import Devices

# Maximum fraction of a device's free memory for a split; activations and gradients need the rest.
RESIDENT_FRACTION = 0.25
# Steps per chunk of a streamed split.
STREAMED_STEPS = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Arrays of examples on the devices, one flat row each.

    A TPU stores the last two axes of an array in tiles of 8 x 128 numbers: images [n, 32, 32, 3] would take four times
    their size, and a copy of all of them in every call (TPU v5e, jax 0.10.2).

    Attributes:
      values: [n, size], or [n] if the examples are scalars.
      shape: of an example.
    """

    values: jax.Array
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def __getitem__(self, index: jax.Array) -> jax.Array:
        """Returns the examples at `index`, an integer array: [*index.shape, *shape]."""
        return self.values[index].reshape(*index.shape, *self.shape)


class Chunk(NamedTuple):
    """The arguments, on the devices, of a compiled call that runs consecutive steps.

    Attributes:
      data: the whole split, or only the examples of these steps: arrays by name.
      order: int32 [steps, local batch], indices into `data`.
      mask: bool [steps, local batch], false for the padding of the last batch; None if all batches are full.
      start, stop: int32 [], the range of steps to run.
    """

    data: dict[str, Rows]
    order: jax.Array
    mask: jax.Array | None
    start: jax.Array
    stop: jax.Array


@dataclasses.dataclass(frozen=True)
class Call:
    """A chunk, and the rows of per-step results that it computes."""

    chunk: Chunk
    rows: slice

    @property
    def steps(self) -> int:
        """Number of steps it runs."""
        return self.rows.stop - self.rows.start


class StepsPerCall:
    """Adapts the number of steps per call to about `seconds` of work, for progress bars and responses to signals.

    It is the same in all processes.
    """

    def __init__(self, seconds: float = 1.0):
        self._seconds = seconds
        self.steps = 1

    @contextlib.contextmanager
    def timing(self, steps: int) -> Iterator[None]:
        """Times a call of `steps` steps in the context. Grows at most fourfold at once, as the first calls mislead."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        (slowest,) = processes.all_max(seconds)
        self.steps = max(1, min(4 * self.steps, round(steps * self._seconds / max(slowest, 1e-6))))


class Loader:
    """Iterates over the examples of a split in any order, as `Call`s.

    Attributes:
      split: the split.
      resident_bytes: what the split takes on each device; 0 if it is streamed.
    """

    def __init__(self, split: Split, devices: Devices):
        self.split, self._devices = split, devices
        self._resident: dict[str, Rows] | None = None
        self.resident_bytes = 0
        if isinstance(split, ArraySplit):
            rows = {name: _flat(array, axes=1) for name, array in (split.inputs | split.targets).items()}
            size = devices.stored_bytes(rows)
            if size <= RESIDENT_FRACTION * devices.free_bytes():
                self._resident, self.resident_bytes = devices.replicate(rows), size

    def __len__(self) -> int:
        return len(self.split)

    @property
    def resident(self) -> bool:
        """Whether the whole split is on the devices."""
        return self._resident is not None

    def compile(
        self, program: Callable, *, chunk_at: int, arguments: int, donate: tuple[int, ...] = (), gather: bool = True
    ) -> Callable:
        """Compiles `program` for all devices.

        Args:
          program: function with a `Chunk` of this loader as an argument; the other arguments are replicated.
          chunk_at: position of the chunk among the arguments.
          arguments: number of arguments.
          donate: positions of the arguments whose memory the results may reuse.
          gather: see `Devices.compile`.
        """
        chunk = Chunk(data=not self.resident, order=True, mask=True, start=False, stop=False)  # type: ignore[arg-type]
        sharded = tuple(chunk if position == chunk_at else False for position in range(arguments))
        return self._devices.compile(program, sharded=sharded, donate=donate, gather=gather)

    def gather(self, results: jax.Array) -> np.ndarray:
        """Returns results with a leading axis of this process's devices from all devices, on every process's host."""
        return processes.all_gather(results)

    def calls(
        self, order: np.ndarray, mask: np.ndarray | None = None, *, first: int = 0, steps_per_call: "StepsPerCall"
    ) -> Iterator[Call]:
        """Yields the steps from `first` on.

        Args:
          order: int32 [steps, batch], indices into the split.
          mask: bool [steps, batch], see `Chunk`.
          first: the first step to run.
          steps_per_call: gives the length of each chunk; chunks of a streamed split have a fixed length.
        """
        if self._resident is not None:
            return self._resident_calls(self._resident, order, mask, first, steps_per_call)
        return self._streamed_calls(order, mask, first)

    def _resident_calls(self, data, order, mask, first, steps_per_call) -> Iterator[Call]:
        own_order, own_mask = self._devices.shard(order), None if mask is None else self._devices.shard(mask)
        while first < len(order):
            stop = min(first + steps_per_call.steps, len(order))
            yield Call(Chunk(data, own_order, own_mask, *self._bounds(first, stop)), slice(first, stop))
            first = stop

    def _streamed_calls(self, order, mask, first) -> Iterator[Call]:
        # Each device reads its part of a chunk in order.
        local = order.shape[1] // self._devices.count
        rows = np.arange(STREAMED_STEPS * local, dtype=np.int32).reshape(STREAMED_STEPS, local)
        chunk_order = self._devices.shard(np.tile(rows, (1, self._devices.count)))
        batches = self.split.batches(self._devices.local_batch(order[first:]))
        while first < len(order):
            stop = min(first + STREAMED_STEPS, len(order))
            data = self._stacked([next(batches) for _ in range(first, stop)])
            chunk_mask = None if mask is None else self._devices.shard(_filled(mask[first:stop]))
            chunk = Chunk(data, chunk_order, chunk_mask, *self._bounds(0, stop - first))
            yield Call(chunk, slice(0, stop - first))
            first = stop

    def _stacked(self, batches: list[Batch]) -> dict[str, Rows]:
        rows = {name: _flat(_filled(np.stack([batch[name] for batch in batches])), axes=2) for name in batches[0]}
        return jax.tree.map(lambda values: self._devices.shard_local(values, flat=True), rows)

    def _bounds(self, start: int, stop: int) -> tuple[jax.Array, jax.Array]:
        return self._devices.replicate((np.int32(start), np.int32(stop)))


def _flat(array: np.ndarray, axes: int) -> Rows:
    """Flattens the examples, which follow the first `axes` axes of an array."""
    leading, shape = array.shape[:axes], array.shape[axes:]
    return Rows(array.reshape(*leading, -1) if shape else array, shape)  # type: ignore[arg-type]  # not yet on a device


def _filled(table: np.ndarray) -> np.ndarray:
    """Pads the last chunk with zeros, for steps that are not run, so that it needs no separate compilation."""
    missing = STREAMED_STEPS - len(table)
    return np.concatenate([table, np.zeros((missing, *table.shape[1:]), table.dtype)]) if missing else table
