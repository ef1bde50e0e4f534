"""The learning-rate range test: the loss of a recipe while its learning rate grows from step to step.

Smith, 2017, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), with the exponential growth and
the smoothed loss that became usual afterwards. Nothing is kept but the curve: no run begins, and none is touched.
"""

import itertools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from sft_jax.errors import DivergedError, UserError
from sft_jax.feed import Pace
from sft_jax.parallel import Devices
from sft_jax.programs import Programs
from sft_jax.report.console import Console
from sft_jax.report.results import write_json
from sft_jax.runs import Run
from sft_jax.signals import StopRequest
from sft_jax.start import initial_weights, load_init, read_dataset
from sft_jax.task import Task

LOWEST, HIGHEST, STEPS = 1e-7, 10.0, 100
# Of the moving average of the loss; the average is divided by the weights it has seen, as Adam's are.
SMOOTHING = 0.9
# The test ends where the smoothed loss is so many times its lowest value.
DIVERGED = 4.0
# Steps whose smoothed loss is an average of too few to be believed.
SETTLING = 10


class RangeTest(NamedTuple):
    """A curve and what it suggests.

    Attributes:
      learning_rates, losses, smoothed: by step, as far as the test went.
      suggested: the learning rate at which the smoothed loss falls steepest.
      lowest: the one at which it is lowest.
      diverged: the one at which it left all bounds; None where it did not.
    """

    learning_rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggested: float
    lowest: float
    diverged: float | None


def find_learning_rate(config: ConfigDict, run: Run, console: Console) -> RangeTest:
    """Makes the test for `config` and writes lr_find.json and lr_find.png in the folder of `run`.

    The weights and the first phase of the training are those of a run, the schedule aside.

    Raises:
      UserError: something given is wrong.
      DivergedError: the loss is not finite from the first steps on.
    """
    if config.optimizer.name.startswith("schedule_free"):
        raise UserError(f"optimizer.name={config.optimizer.name} has one learning rate for all steps: no range test")
    if run.folder.exists() and not run.folder.is_dir():
        raise UserError(f"--workdir {run.folder} is a file; name a folder")
    devices = Devices()
    devices.check_batch(config.batch_size, config.optimizer.accumulate)
    init = load_init(config)
    task = Task(config, read_dataset(config, console), devices)
    params, batch_stats, start = initial_weights(config, task.build, task.network, init, task.dataset.class_names)
    with StopRequest() as stop, console.progress("learning-rate range test", STEPS) as bar:
        losses: list[float] = []
        for loss in measured_losses(task, params, batch_stats):
            losses.append(loss)
            bar.advance(1, f"loss {loss:.4f}")
            if stop or has_diverged(losses):
                break
    if stop:
        raise KeyboardInterrupt
    found = judge(losses)
    _write(found, run, config)
    diverged = "it did not diverge" if found.diverged is None else f"it diverged at {found.diverged:.2g}"
    console.conclude(
        f"learning rate: {found.suggested:.2g} suggested, where the loss falls steepest; it is lowest at "
        f"{found.lowest:.2g}, {diverged}; {start}; see {run.folder / 'lr_find.png'}"
    )
    return found


def rate(step: Any) -> jax.Array:
    """The learning rate of the step after `step` others."""
    share = jnp.asarray(step, jnp.float32) / (STEPS - 1)
    return LOWEST * (HIGHEST / LOWEST) ** share


def measured_losses(task: Task, params: Any, batch_stats: Any):
    """Trains with the growing learning rate and yields the loss of each step."""
    programs = Programs(task, task.phases[0], schedule=rate)
    state = programs.first_state(params, batch_stats)
    pace = Pace()
    done = 0
    for epoch in itertools.count():
        order = task.order(epoch)[: STEPS - done]
        for piece in programs.train_feed.pieces(order, pace=pace):
            with pace.timing(piece.steps):
                state, metrics = programs.train_steps(state, *piece.arguments, task.key)
                losses = np.asarray(metrics.loss)[piece.rows]
            yield from losses.tolist()
        done += len(order)
        if done == STEPS:
            return


def smoothed(losses: Sequence[float]) -> np.ndarray:
    """The moving average of `losses`, each value divided by the weights it is made of."""
    average, found = 0.0, []
    for step, loss in enumerate(losses, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        found.append(average / (1 - SMOOTHING**step))
    return np.array(found)


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether the last loss is not finite, or the smoothed loss is `DIVERGED` times its lowest."""
    if not np.isfinite(losses[-1]):
        return True
    found = smoothed(losses)
    return len(losses) > SETTLING and found[-1] > DIVERGED * found[SETTLING:].min()


def judge(losses: Sequence[float]) -> RangeTest:
    """What the losses of the steps suggest. Raises DivergedError where there are too few that are finite."""
    diverged = float(rate(len(losses) - 1)) if has_diverged(losses) else None
    finite = [loss for loss in losses if np.isfinite(loss)]
    if len(finite) < SETTLING + 2:
        raise DivergedError(f"the loss is {losses[-1]} at a learning rate of {diverged:.2g}: no learning rate will do")
    rates = np.array([float(rate(step)) for step in range(len(finite))])
    curve = smoothed(finite)
    lowest = SETTLING + int(curve[SETTLING:].argmin())
    # By the logarithm of the learning rate, whose steps are equal; behind the lowest loss nothing falls for long.
    slopes = np.gradient(curve)[SETTLING : max(lowest, SETTLING + 1)]
    steepest = SETTLING + int(slopes.argmin())
    return RangeTest(rates, np.array(finite), curve, float(rates[steepest]), float(rates[lowest]), diverged)


def _write(found: RangeTest, run: Run, config: ConfigDict) -> None:
    values = {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in zip(found._fields, found, strict=True)
    }
    write_json(run.folder / "lr_find.json", {**values, "config": json.loads(json.dumps(config.to_dict()))})
    figure = Figure((7.5, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(found.learning_rates, found.losses, color="#c3c9ce", linewidth=1, label="loss of the batch")
    axes.plot(found.learning_rates, found.smoothed, color="#33608c", linewidth=2, label="smoothed")
    axes.axvline(found.suggested, color="#c8402e", linestyle="--", label=f"suggested: {found.suggested:.2g}")
    axes.set_xscale("log")
    # Of a loss that left all bounds the rest of the curve would be a flat line.
    axes.set_ylim(0, 1.05 * max(found.smoothed[0], found.smoothed.min() * DIVERGED))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(run.folder / "lr_find.png", dpi=120)
