"""Brings the examples of a split to the devices: all at once where they fit, else in chunks as they are needed."""

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

# A split may take this fraction of the memory that is free on a device; activations and gradients need the rest.
RESIDENT_FRACTION = 0.25
# Steps whose examples travel together when a split is streamed.
STREAMED_STEPS = 8


class Chunk(NamedTuple):
    """Consecutive steps for one compiled call, on the devices.

    Attributes:
      data: the whole split, or the examples of these steps alone: arrays by name, with the examples on the first axis.
      order: int32 [steps, local batch], rows of `data`.
      mask: bool [steps, local batch], false for the padding of a last batch; None where all batches are full.
      start, stop: int32 [], the steps to run.
    """

    data: dict[str, jax.Array]
    order: jax.Array
    mask: jax.Array | None
    start: jax.Array
    stop: jax.Array


@dataclasses.dataclass(frozen=True)
class Call:
    """A chunk, and which entries of the results by step belong to it."""

    chunk: Chunk
    rows: slice

    @property
    def steps(self) -> int:
        """How many steps it runs."""
        return self.rows.stop - self.rows.start


class StepsPerCall:
    """How many steps a call should hold: about `seconds` of work, so that bars move and signals are heard.

    All processes keep the same pace.
    """

    def __init__(self, seconds: float = 1.0):
        self._seconds = seconds
        self.steps = 1

    @contextlib.contextmanager
    def timing(self, steps: int) -> Iterator[None]:
        """Measures a call of `steps` steps made within. Grows at most fourfold at a time: first calls mislead."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        (slowest,) = processes.all_max(seconds)
        self.steps = max(1, min(4 * self.steps, round(steps * self._seconds / max(slowest, 1e-6))))


class Loader:
    """A split as a sequence of `Call`s in any order of its examples.

    Attributes:
      split: where the examples come from.
    """

    def __init__(self, split: Split, devices: Devices):
        self.split, self._devices = split, devices
        self._resident: dict[str, jax.Array] | None = None
        if isinstance(split, ArraySplit) and split.nbytes <= RESIDENT_FRACTION * devices.free_bytes():
            self._resident = devices.replicate(split.inputs | split.targets)

    def __len__(self) -> int:
        return len(self.split)

    @property
    def resident(self) -> bool:
        """Whether all examples are on the devices."""
        return self._resident is not None

    def compile(
        self, program: Callable, *, chunk_at: int, arguments: int, donate: tuple[int, ...] = (), gather: bool = True
    ) -> Callable:
        """Compiles `program` for all devices.

        Args:
          program: one of its arguments is a `Chunk` of this loader; the others are the same on all devices.
          chunk_at: the position of that argument.
          arguments: how many there are.
          donate: positions of the arguments whose memory the results may take.
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
          order: int32 [steps, batch], rows of the split.
          mask: bool [steps, batch], see `Chunk`.
          first: the first step to run.
          steps_per_call: asked for the length of each chunk; a streamed split has chunks of a fixed length.
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
        # Within a chunk a device reads its own examples from the first to the last.
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

    def _stacked(self, batches: list[Batch]) -> dict[str, jax.Array]:
        stacked = {name: _filled(np.stack([batch[name] for batch in batches])) for name in batches[0]}
        return {name: self._devices.shard_local(column, flat=True) for name, column in stacked.items()}

    def _bounds(self, start: int, stop: int) -> tuple[jax.Array, jax.Array]:
        return self._devices.replicate((np.int32(start), np.int32(stop)))


def _filled(table: np.ndarray) -> np.ndarray:
    """Pads the steps of a last chunk with zeros, which are not run, so that it needs no compilation of its own."""
    missing = STREAMED_STEPS - len(table)
    return np.concatenate([table, np.zeros((missing, *table.shape[1:]), table.dtype)]) if missing else table
