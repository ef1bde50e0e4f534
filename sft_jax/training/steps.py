"""Many steps in one compiled call: the examples stay on the device, the host only says which steps to run.

The number of steps is an argument, not a shape, so one program serves calls of any length and every step computes the
same bits however an epoch is cut into calls.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sft_jax.data.loader import Chunk
from sft_jax.ops.collectives import all_sum
from sft_jax.tasks.base import Augment, Batch, Preprocess
from sft_jax.training.state import TrainState
from sft_jax.training.step import StepMetrics

# Of the random numbers of a step: each purpose has a key of its own.
AUGMENTATION, UPDATE = 0, 1
# A step is traced once, for the shapes of its results and in the loop; inlined, the loop's program is as without it.
traced_once = functools.partial(jax.jit, inline=True)


def rows_of(chunk: Chunk, index: jax.Array) -> Batch:
    """Returns the examples of the step `index` of a chunk."""
    return jax.tree.map(lambda column: column[chunk.order[index]], chunk.data)


def make_train_steps(train_step: Callable, augment: Augment, axis_name: str, devices: int) -> Callable:
    """Makes the program of one device's share of the steps of a chunk.

    It maps (state, `Chunk`, key) to (state, `StepMetrics` of arrays [steps], zero for the steps not run).
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


def make_eval_steps(eval_step: Callable, preprocess: Preprocess, axis_name: str) -> Callable:
    """Makes the program of one device's share of the evaluation steps of a chunk.

    It maps (params, batch_stats, `Chunk`) to `Task.sums` over all devices. Integer leaves are sums over the steps;
    those in floating point have an axis of steps in front, zero for the steps not run: rounded as they are, their sum
    must not depend on how the steps were cut into calls.
    """

    def eval_steps(params, batch_stats, chunk: Chunk) -> Any:
        mask = chunk.mask
        assert mask is not None

        @traced_once
        def step(index: jax.Array) -> Any:
            return eval_step(params, batch_stats, preprocess(rows_of(chunk, index)), mask[index])

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
    """Whether sums of arrays like `leaf` are exact: those of integers."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.integer))
