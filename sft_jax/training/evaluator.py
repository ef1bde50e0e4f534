"""Forward passes over a split: exact evaluation and per-example outputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sft_jax.data.dataset import Split
from sft_jax.data.loader import Call, Chunk, Loader, StepsPerCall
from sft_jax.data.sampling import eval_order
from sft_jax.models import HeadNetwork, Network
from sft_jax.runtime.devices import AXIS
from sft_jax.tasks.base import Batch, Kept, Preprocess, Task
from sft_jax.training.step import make_eval_step, make_outputs
from sft_jax.training.steps import is_exact, make_eval_steps, rows_of

Weights = Mapping[str, jax.Array]


def map_split(
    function: Callable[[Chunk], Any],
    loader: Loader,
    order: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    steps_per_call: StepsPerCall,
) -> Iterator[tuple[Call, Any]]:
    """Applies `function` to the chunk of every call over a split; yields (call, result) once the result is computed."""
    for call in loader.calls(order, mask, steps_per_call=steps_per_call):
        with steps_per_call.timing(call.steps):
            result = jax.block_until_ready(function(call.chunk))
        yield call, result


class Evaluator:
    """Evaluates a network on a task, with `batch_size` examples per step over all devices.

    Every example counts exactly once, for any batch size and number of devices. With several `views` of an example,
    each a preprocessing, the outputs for them are averaged.
    """

    def __init__(
        self,
        network: Network | HeadNetwork,
        task: Task,
        views: Sequence[Preprocess],
        batch_size: int,
    ):
        self._program = make_eval_steps(make_eval_step(network, task), views, AXIS)
        self._outputs = predict_all(network, views, batch_size) if task.keeps_outputs else None
        self._batch_size = batch_size
        self._compiled: dict[str, Callable] = {}
        self._steps_per_call = StepsPerCall()

    def __call__(
        self,
        params: Weights,
        batch_stats: Weights,
        loader: Loader,
        after_call: Callable[[int, int], None] = lambda done, steps: None,
    ) -> Any:
        """Returns `Task.sums` over the whole split of `loader` as numpy arrays, or its `Kept`.

        Floating-point sums are float64. The result is bit-identical for any division of the steps into calls, which
        depends on timing. `after_call(done, steps)` is called after each call.
        """
        if self._outputs is not None:
            outputs = self._outputs(params, batch_stats, loader, after_call)
            return Kept(len(loader), outputs, loader.split.targets)
        program, (order, mask) = self.program(loader), self.order(loader)
        parts: list[Any] = []
        done = 0
        calls = map_split(
            lambda chunk: program(params, batch_stats, chunk), loader, order, mask, steps_per_call=self._steps_per_call
        )
        for call, sums in calls:
            rows = call.rows
            parts.append(jax.tree.map(lambda leaf: leaf if is_exact(leaf) else leaf[rows], jax.device_get(sums)))  # noqa: B023  # used at once
            done += call.steps
            after_call(done, len(order))
        total = jax.tree.map(_added, *parts)
        assert int(total.total) == len(loader), "every example counts exactly once"
        return total

    def program(self, loader: Loader) -> Callable:
        """Returns the compiled program (params, batch_stats, `Chunk`) -> `Task.sums`, or outputs, for `loader`."""
        if self._outputs is not None:
            return self._outputs.program(loader)
        if loader.placement not in self._compiled:
            self._compiled[loader.placement] = loader.compile(self._program, chunk_at=2, arguments=3)
        return self._compiled[loader.placement]

    def order(self, loader: Loader) -> tuple[np.ndarray, np.ndarray]:
        """Returns the order in which the split of `loader` is evaluated, and the mask, see `Loader.calls`."""
        return order_of(loader.split, self._batch_size)


def order_of(split: Split, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the order in which `split` is evaluated, and the mask, see `Loader.calls`."""
    return eval_order(len(split), batch_size, None if split.lengths is None else split.lengths.each)


def _added(*leaves: np.ndarray) -> np.ndarray:
    """Sums integers over calls, and floating-point numbers [steps, ...] over all steps at once, in float64."""
    if is_exact(leaves[0]):
        return np.sum(leaves, axis=0, dtype=leaves[0].dtype)
    return np.concatenate(leaves).astype(np.float64).sum(0)


# (params, batch_stats, batch) -> [n, ...]
Outputs = Callable[[Weights, Weights, Batch], jax.Array]


class PerExample:
    """Computes outputs for every example of a split, with `batch_size` examples per step over all devices."""

    def __init__(self, outputs: Outputs, batch_size: int):
        def program(params, batch_stats, chunk: Chunk):
            def of(index) -> jax.Array:
                return outputs(params, batch_stats, rows_of(chunk, index)).astype(jnp.float32)

            def body(index, table):
                return table.at[index].set(of(index))

            like = jax.eval_shape(of, chunk.start)
            table = jnp.zeros((len(chunk.order), *like.shape), jnp.float32)
            return lax.fori_loop(chunk.start, chunk.stop, body, table)

        self._program, self._batch_size = program, batch_size
        self._compiled: dict[str, Callable] = {}

    def __call__(
        self,
        params: Weights,
        batch_stats: Weights,
        loader: Loader,
        after_call: Callable[[int, int], None] = lambda done, steps: None,
    ) -> np.ndarray:
        """Returns the outputs for all examples of the split of `loader`, in order: float32 [n, ...].

        `after_call(done, steps)` is called after each call.
        """
        program = self.program(loader)
        order, mask = order_of(loader.split, self._batch_size)
        outputs, done = [], 0
        calls = map_split(
            lambda chunk: program(params, batch_stats, chunk), loader, order, steps_per_call=StepsPerCall(seconds=5.0)
        )
        for call, own in calls:
            table = loader.gather(own[:, call.rows])
            # [devices, steps, local batch, ...] -> [examples, ...] in order
            outputs.append(np.moveaxis(table, 0, 1).reshape(-1, *table.shape[3:]))
            done += call.steps
            after_call(done, len(order))
        evaluated = np.concatenate(outputs)
        table = np.empty_like(evaluated[: len(loader)])
        table[order[mask]] = evaluated[mask.ravel()]
        return table

    def program(self, loader: Loader) -> Callable:
        """Returns the compiled program (params, batch_stats, `Chunk`) -> outputs, for chunks of `loader`."""
        if loader.placement not in self._compiled:
            self._compiled[loader.placement] = loader.compile(self._program, chunk_at=2, arguments=3, gather=False)
        return self._compiled[loader.placement]


def predict_all(network: Network | HeadNetwork, views: Sequence[Preprocess], batch_size: int) -> PerExample:
    """Makes a `PerExample` that computes the outputs of `network`, see `make_outputs`: float32 [n, ...]."""
    mean = make_outputs(network)

    def outputs(params, batch_stats, batch: Batch) -> jax.Array:
        return mean(params, batch_stats, [view(batch) for view in views])

    return PerExample(outputs, batch_size)
