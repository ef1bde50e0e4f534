"""Many steps per compiled call: the examples stay on the device, and the host only passes the range of steps to run.

The number of steps is an argument rather than a shape, so that one program serves calls of any length and the result
of a step is bit-identical for any division of an epoch into calls.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sft_jax.data.loader import Chunk
from sft_jax.ops.collectives import all_sum
from sft_jax.tasks.base import Augment, Batch, Preprocess
from sft_jax.training.state import TrainState
from sft_jax.training.step import StepMetrics

# Folded into the random key of a step, one per purpose.
AUGMENTATION, UPDATE = 0, 1
# Traces a step once for both eval_shape and the loop; inlining leaves the compiled program unchanged.
traced_once = functools.partial(jax.jit, inline=True)


def rows_of(chunk: Chunk, index: jax.Array) -> Batch:
    """Returns the examples of step `index` of a chunk."""
    return {name: rows[chunk.order[index]] for name, rows in chunk.data.items()}


def make_train_steps(train_step: Callable, augment: Augment, axis_name: str, devices: int) -> Callable:
    """Makes the per-device program that runs the training steps of a chunk.

    It maps (state, `Chunk`, key) to (state, `StepMetrics` of arrays [steps]); metrics of steps not run are 0.
    """

    def train_steps(state: TrainState, chunk: Chunk, key: jax.Array) -> tuple[TrainState, StepMetrics]:
        steps, local = chunk.order.shape
        first = lax.axis_index(axis_name) * local

        @traced_once
        def step(state: TrainState, index: jax.Array) -> tuple[TrainState, StepMetrics]:
            step_key = jax.random.fold_in(key, state.step)
            augment_key, update_key = (jax.random.fold_in(step_key, purpose) for purpose in (AUGMENTATION, UPDATE))
            batch = augment(rows_of(chunk, index), augment_key, first, local * devices)
            return train_step(state, batch, update_key)

        def body(index, carry):
            state, metrics = carry
            state, new = step(state, index)
            return state, jax.tree.map(lambda all_steps, value: all_steps.at[index].set(value), metrics, new)

        _, like = jax.eval_shape(step, state, chunk.start)
        metrics = jax.tree.map(lambda leaf: jnp.zeros((steps, *leaf.shape), leaf.dtype), like)
        return lax.fori_loop(chunk.start, chunk.stop, body, (state, metrics))

    return train_steps


def make_eval_steps(eval_step: Callable, views: Sequence[Preprocess], axis_name: str) -> Callable:
    """Makes the per-device program that runs the evaluation steps of a chunk.

    It maps (params, batch_stats, `Chunk`) to `Task.sums` over all devices. Integer leaves are summed over the steps;
    floating-point leaves get a leading axis of steps, 0 for steps not run, because the rounding of their sum would
    depend on the division of the steps into calls.
    """

    def eval_steps(params, batch_stats, chunk: Chunk) -> Any:
        mask = chunk.mask
        assert mask is not None

        @traced_once
        def step(index: jax.Array) -> Any:
            batch = rows_of(chunk, index)
            return eval_step(params, batch_stats, [view(batch) for view in views], mask[index])

        def body(index, sums):
            return jax.tree.map(
                lambda total, new: total + new if is_exact(new) else total.at[index].set(new), sums, step(index)
            )

        def zero(leaf: jax.ShapeDtypeStruct) -> jax.Array:
            return jnp.zeros(leaf.shape if is_exact(leaf) else (len(mask), *leaf.shape), leaf.dtype)

        before = jax.tree.map(zero, jax.eval_shape(step, chunk.start))
        return all_sum(lax.fori_loop(chunk.start, chunk.stop, body, before), axis_name)

    return eval_steps


def is_exact(leaf: Any) -> bool:
    """Returns whether sums of arrays like `leaf` are exact, i.e. integers."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.integer))
