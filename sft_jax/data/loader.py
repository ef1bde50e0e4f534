"""Moves the examples of a split to the devices: all at once if they fit, otherwise in shares or streamed in chunks."""

import concurrent.futures
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from sft_jax.data.dataset import ArraySplit, Batch, Split
from sft_jax.data.rows import Rows, flat_rows
from sft_jax.data.shares import COPIES, Shares
from sft_jax.errors import UserError
from sft_jax.runtime import processes
from sft_jax.runtime.devices import Devices
from sft_jax.runtime.estimate import size_text

# Maximum fraction of a device's free memory for a split; activations and gradients need the rest.
RESIDENT_FRACTION = 0.25
# Steps per chunk of a streamed split.
STREAMED_STEPS = 8


class Chunk(NamedTuple):
    """The arguments, on the devices, of a compiled call that runs consecutive steps.

    Attributes:
      data: arrays by name: of the whole split, of those examples of an epoch that this device uses, or only of those
        of these steps.
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
      placement: "replicated" (all of it on each device), "sharded" (a share on each) or "streamed" (in chunks).
      resident_bytes: what the split takes on each device; 0 if it is streamed.
      waited: seconds that callers of `calls` have waited for examples of a streamed split, so far.

    Args:
      split: the split.
      devices: the devices.
      placement: "replicated", "sharded" or "auto": arrays that fit on each device are replicated, those that fit on
        all devices together are sharded, others and what is decoded on demand are streamed.

    Raises:
      UserError: the split does not fit in the memory of the devices in the placement that was asked for.
    """

    def __init__(self, split: Split, devices: Devices, placement: str = "auto"):
        self.split, self._devices = split, devices
        self._resident: dict[str, Rows] | None = None
        self._shares: Shares | None = None
        self.waited = 0.0
        self.placement, self.resident_bytes = self._place(placement), 0
        if self.placement == "replicated":
            rows = {name: flat_rows(array, axes=1) for name, array in _arrays(split).items()}
            self._resident, self.resident_bytes = devices.replicate(rows), devices.stored_bytes(rows)
        elif self.placement == "sharded":
            self._shares = Shares(split, devices)
            self.resident_bytes = self._shares.bytes

    def _place(self, asked: str) -> str:
        if asked == "sharded" and self._devices.count == 1:
            asked = "replicated"  # the same, but simpler
        if asked == "auto" and not isinstance(self.split, ArraySplit):
            return "streamed"  # decoding everything first would delay the first step
        share = self._devices.whole_batch(len(self.split)) // self._devices.count
        example = next(self.split.batches(np.zeros((1, 1), np.int32)))
        free = self._devices.free_bytes()
        needed = {
            "replicated": self._stored(example, len(self.split)),
            "sharded": COPIES * self._stored(example, share),
        }
        if asked == "auto":
            fitting = (name for name, size in needed.items() if size <= RESIDENT_FRACTION * free)
            return next(fitting, "streamed")
        if needed[asked] > free:
            raise UserError(
                f"data.placement={asked}: {len(self.split):,} examples need {size_text(needed[asked])} of each device, "
                f"which has {size_text(free)} free; use data.placement=auto"
            )
        return asked

    def _stored(self, example: Batch, count: int) -> int:
        rows = {
            name: jax.ShapeDtypeStruct((count, *([values[0].size] if values.ndim > 1 else [])), values.dtype)
            for name, values in example.items()
        }
        return self._devices.stored_bytes(rows)

    def __len__(self) -> int:
        return len(self.split)

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
        chunk = Chunk(data=self.placement != "replicated", order=True, mask=True, start=False, stop=False)  # type: ignore[arg-type]
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
        lengths = self.split.lengths and self.split.lengths.of_steps(order)
        if self._resident is not None:
            return self._resident_calls(self._resident, order, mask, first, steps_per_call, lengths)
        if self._shares is not None:
            data, turns = self._shares.in_order(order), self._in_turn(len(order), order.shape[1])
            return self._resident_calls(data, turns, mask, first, steps_per_call, lengths)
        return self._ahead(self._streamed_calls(order, mask, first, lengths))

    def variants(self, chunk: Chunk) -> Iterator[Chunk]:
        """Yields `chunk`, a chunk of this loader, cut to each of the lengths that its calls may have."""
        lengths = self.split.lengths
        for length in [None] if lengths is None else np.unique(lengths.of_steps(np.arange(len(self.split))[:, None])):
            yield chunk._replace(data=self._cut(chunk.data, length))

    def _cut(self, data: dict[str, Rows], length: int | None) -> dict[str, Rows]:
        """Cuts the inputs to `length`; None leaves them as they are."""
        if length is None:
            return data
        targets = self.split.targets
        return {name: rows if name in targets else rows.cut(int(length)) for name, rows in data.items()}

    def _ahead(self, calls: Iterator[Call]) -> Iterator[Call]:
        """Yields `calls`; a thread prepares the next one, and moves it to the devices, while they run the last."""
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            following = thread.submit(next, calls, None)
            while True:
                start = time.perf_counter()
                call = following.result()
                self.waited += time.perf_counter() - start
                if call is None:
                    return
                following = thread.submit(next, calls, None)
                yield call

    def _in_turn(self, steps: int, batch: int) -> np.ndarray:
        """Returns the order int32 [steps, batch] in which each device takes its own examples one after the other."""
        local = batch // self._devices.count
        rows = np.arange(steps * local, dtype=np.int32).reshape(steps, local)
        return np.tile(rows, (1, self._devices.count))

    def _resident_calls(self, data, order, mask, first, steps_per_call, lengths) -> Iterator[Call]:
        own_order, own_mask = self._devices.shard(order), None if mask is None else self._devices.shard(mask)
        while first < len(order):
            stop = min(first + steps_per_call.steps, len(order))
            if lengths is not None:  # a call has one shape
                others = np.flatnonzero(lengths[first:stop] != lengths[first])
                stop = first + int(others[0]) if len(others) else stop
            cut = self._cut(data, None if lengths is None else lengths[first])
            yield Call(Chunk(cut, own_order, own_mask, *self._bounds(first, stop)), slice(first, stop))
            first = stop

    def _streamed_calls(self, order, mask, first, lengths) -> Iterator[Call]:
        chunk_order = self._devices.shard(self._in_turn(STREAMED_STEPS, order.shape[1]))
        batches = self.split.batches(self._devices.local_batch(order[first:]))
        while first < len(order):
            stop = min(first + STREAMED_STEPS, len(order))
            data = self._stacked([next(batches) for _ in range(first, stop)])
            data = self._cut(data, None if lengths is None else lengths[first:stop].max())
            chunk_mask = None if mask is None else self._devices.shard(_filled(mask[first:stop]))
            chunk = Chunk(data, chunk_order, chunk_mask, *self._bounds(0, stop - first))
            yield Call(chunk, slice(0, stop - first))
            first = stop

    def _stacked(self, batches: list[Batch]) -> dict[str, Rows]:
        rows = {name: flat_rows(_filled(np.stack([batch[name] for batch in batches])), axes=2) for name in batches[0]}
        return jax.tree.map(lambda values: self._devices.shard_local(values, flat=True), rows)

    def _bounds(self, start: int, stop: int) -> tuple[jax.Array, jax.Array]:
        return self._devices.replicate((np.int32(start), np.int32(stop)))


def _arrays(split: Split) -> Batch:
    """Returns all examples of a split: inputs and targets by name."""
    if isinstance(split, ArraySplit):
        return split.inputs | split.targets
    return next(split.batches(np.arange(len(split))[None]))


def _filled(table: np.ndarray) -> np.ndarray:
    """Pads the last chunk with zeros, for steps that are not run, so that it needs no separate compilation."""
    missing = STREAMED_STEPS - len(table)
    return np.concatenate([table, np.zeros((missing, *table.shape[1:]), table.dtype)]) if missing else table
