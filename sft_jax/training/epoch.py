"""Many steps in one compiled call: the images stay on the device, the host only says which steps to run.

The number of steps is an argument, not a shape, so one program serves calls of any length and every step computes the
same bits however an epoch is cut into calls.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from sft_jax.ops.collectives import all_sum
from sft_jax.tasks.classification import CALIBRATION_BINS, EvalSums
from sft_jax.training.state import TrainState
from sft_jax.training.step import StepMetrics

# Of the random numbers of a step: each purpose has a key of its own.
AUGMENTATION, UPDATE = 0, 1

# (uint8 images, key, position of the first of them in the whole batch, size of the whole batch) -> network inputs
Augment = Callable[[jax.Array, jax.Array, jax.Array, int], jax.Array]


def make_train_steps(train_step: Callable, augment: Augment, axis_name: str, devices: int) -> Callable:
    """The program of one device's share in steps `start` to `stop` of an epoch.

    It maps (state, images uint8 [n, height, width, 3], labels int32 [n], order int32 [steps, share] of rows in images,
    start, stop, key) to (state, `StepMetrics` of arrays [steps], zero for the steps not run).
    """

    def train_steps(state, images, labels, order, start, stop, key) -> tuple[TrainState, StepMetrics]:
        steps, share = order.shape
        first = lax.axis_index(axis_name) * share

        def body(index, carry):
            state, metrics = carry
            rows = order[index]
            step_key = jax.random.fold_in(key, state.step)
            augment_key, update_key = (jax.random.fold_in(step_key, purpose) for purpose in (AUGMENTATION, UPDATE))
            inputs = augment(images[rows], augment_key, first, share * devices)
            state, new = train_step(state, inputs, labels[rows], update_key)
            return state, jax.tree.map(lambda all_steps, value: all_steps.at[index].set(value), metrics, new)

        metrics = StepMetrics(jnp.zeros(steps, jnp.float32), jnp.zeros(steps, jnp.int32))
        return lax.fori_loop(start, stop, body, (state, metrics))

    return train_steps


def make_eval_steps(
    eval_step: Callable, preprocess: Callable[[jax.Array], jax.Array], classes: int, axis_name: str
) -> Callable:
    """The program of one device's share in evaluation steps `start` to `stop`.

    It maps (params, batch_stats, images, labels, order int32 [steps, share], mask bool [steps, share], start, stop) to
    the `EvalSums` over all devices. Of each step by itself are `loss` [steps] and `calibration` [steps, ...], zero for
    the steps not run: rounded as they are, their sum must not depend on how the steps were cut into calls.
    """

    def eval_steps(params, batch_stats, images, labels, order, mask, start, stop) -> EvalSums:
        def body(index, sums: EvalSums) -> EvalSums:
            rows = order[index]
            new = eval_step(params, batch_stats, preprocess(images[rows]), labels[rows], mask[index])
            return EvalSums(
                total=sums.total + new.total,
                loss=sums.loss.at[index].set(new.loss),
                correct=sums.correct + new.correct,
                top5=sums.top5 + new.top5,
                confusion=sums.confusion + new.confusion,
                calibration=sums.calibration.at[index].set(new.calibration),
            )

        zero, steps = jnp.zeros((), jnp.int32), len(order)
        confusion = jnp.zeros((classes, classes), jnp.int32)
        calibration = jnp.zeros((steps, 3, CALIBRATION_BINS), jnp.float32)
        before = EvalSums(zero, jnp.zeros(steps, jnp.float32), zero, zero, confusion, calibration)
        return all_sum(lax.fori_loop(start, stop, body, before), axis_name)

    return eval_steps
