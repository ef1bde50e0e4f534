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

from sft_jax.data.loader import StepsPerCall
from sft_jax.errors import DivergedError, UserError
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.runtime.devices import Devices
from sft_jax.runtime.files import write_json, written_whole
from sft_jax.runtime.signals import StopRequest
from sft_jax.training.experiment import Experiment
from sft_jax.training.phase_programs import PhasePrograms
from sft_jax.training.start import initial_weights, load_init, read_dataset

LOWEST, HIGHEST, STEPS = 1e-7, 10.0, 100
# Of the moving average that tells where the test ends; it is divided by the weights it has seen, as Adam's are.
KEPT = 0.9
# The test ends where this average is so many times its lowest value, of those after the first steps.
DIVERGED, SETTLING = 4.0, 10
# Standard deviation in steps of the weights of the lines that smooth the curve. They lie on both sides of each step: a
# moving average would lag behind the loss.
SMOOTHING = 4.0
# The loss has to fall by so many standard deviations of its smoothed noise, and by this share, to suggest anything.
CERTAIN, WORTHWHILE = 6.0, 0.02


class RangeTest(NamedTuple):
    """A curve and what it suggests.

    Attributes:
      key: the config key whose values the learning rates are.
      learning_rates, losses, smoothed: by step, as far as the test went.
      suggested: the learning rate at which the smoothed loss falls steepest; None where it does not fall.
      lowest: the one at which it is lowest.
      diverged: the one at which it left all bounds; None where it did not.
    """

    key: str
    learning_rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggested: float | None
    lowest: float
    diverged: float | None


def find_learning_rate(config: ConfigDict, run: Run, console: Console) -> RangeTest:
    """Makes the test for `config` and writes lr_find.json and lr_find.png in the folder of `run`.

    The weights are those that a run begins with and the phase is its last one, which trains all there is to train; of
    head_then_full the head is solved, as it is before its first epoch. There is no schedule.

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
    experiment = Experiment(config, read_dataset(config, console), devices)
    params, batch_stats, start = initial_weights(
        config, experiment.build, experiment.network, init, experiment.dataset.class_names
    )
    with StopRequest() as stop, console.progress("learning-rate range test", STEPS) as bar:
        losses: list[float] = []
        for loss in measured_losses(experiment, params, batch_stats):
            losses.append(loss)
            bar.advance(1, f"loss {loss:.4f}")
            if stop or has_diverged(losses):
                break
    if stop:
        raise KeyboardInterrupt
    found = judge(losses, *meaning(experiment))
    _write(found, run, config)
    console.conclude(f"learning rate: {_summary(found)}; {start}; see {run.folder / 'lr_find.png'}")
    return found


def meaning(experiment: Experiment) -> tuple[str, float]:
    """The config key of the learning rate that is tested, and by what the run multiplies its value."""
    config = experiment.config
    of_head = experiment.phases[-1].head_only and config.finetune.head_learning_rate is not None
    key = "finetune.head_learning_rate" if of_head else "optimizer.learning_rate"
    reference = config.optimizer.reference_batch
    return key, 1.0 if reference is None else config.batch_size / reference


def rate(step: Any) -> jax.Array:
    """The learning rate of the step after `step` others."""
    share = jnp.asarray(step, jnp.float32) / (STEPS - 1)
    return LOWEST * (HIGHEST / LOWEST) ** share


def measured_losses(experiment: Experiment, params: Any, batch_stats: Any):
    """Trains with the growing learning rate and yields the loss of each step."""
    programs = PhasePrograms(experiment, experiment.phases[0], schedule=rate)
    state = programs.first_state(params, batch_stats)
    if len(experiment.phases) > 1:
        before, programs = programs, PhasePrograms(experiment, experiment.phases[-1], schedule=rate)
        state = programs.fresh_state(state, before)
    steps_per_call = StepsPerCall()
    done = 0
    for epoch in itertools.count():
        order = experiment.order(epoch)[: STEPS - done]
        for trained, call, metrics in programs.run_steps(state, order, steps_per_call=steps_per_call):
            state = trained
            yield from np.asarray(metrics.loss)[call.rows].tolist()
        done += len(order)
        if done == STEPS:
            return


def running_average(losses: Sequence[float]) -> np.ndarray:
    """The moving average of `losses`, each value divided by the weights it is made of."""
    average, found = 0.0, []
    for step, loss in enumerate(losses, 1):
        average = KEPT * average + (1 - KEPT) * loss
        found.append(average / (1 - KEPT**step))
    return np.array(found)


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether the last loss is not finite, or the moving average is `DIVERGED` times its lowest."""
    if not np.isfinite(losses[-1]):
        return True
    found = running_average(losses)
    return len(losses) > SETTLING and found[-1] > DIVERGED * found[SETTLING:].min()


def fitted_lines(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value and slope at each step of a line through the losses around it, with weights from a normal distribution."""
    steps = np.arange(len(losses), dtype=np.float64)
    away = steps[None] - steps[:, None]
    weights = np.exp(-((away / SMOOTHING) ** 2) / 2)
    weights /= weights.sum(1, keepdims=True)
    centre, mean = (weights * away).sum(1, keepdims=True), weights @ losses
    slopes = (weights * (away - centre)) @ losses / (weights * (away - centre) ** 2).sum(1)
    return mean - slopes * centre[:, 0], slopes


def judge(losses: Sequence[float], key: str = "optimizer.learning_rate", scale: float = 1.0) -> RangeTest:
    """What the losses of the steps suggest.

    Args:
      losses: by step, the last one may be infinite.
      key: see `meaning`.
      scale: likewise.

    Raises:
      DivergedError: there are too few that are finite.
    """
    rates = np.array([float(rate(step)) for step in range(len(losses))]) / scale
    diverged = float(rates[-1]) if has_diverged(losses) else None
    finite = np.array([loss for loss in losses if np.isfinite(loss)])
    if len(finite) < SETTLING + 2:
        raise DivergedError(f"the loss is {losses[-1]} at {key}={rates[-1]:.2g}: no learning rate will do")
    curve, slopes = fitted_lines(finite)
    lowest = int(curve.argmin())
    start = finite[:SETTLING].mean()  # of steps too small to change anything
    fall = start - curve[lowest]
    # Of what differs from step to step; its median, which a few steps that explode do not move.
    noise = np.median(np.abs(np.diff(finite - curve))) / 0.954
    # The mean under normal weights has the noise of 2 sqrt(pi) SMOOTHING independent steps' mean.
    smoothed_noise = noise / np.sqrt(2 * np.sqrt(np.pi) * SMOOTHING)
    falls = lowest > SETTLING and fall > max(CERTAIN * smoothed_noise, WORTHWHILE * start)
    # By the logarithm of the learning rate, whose steps are equal; behind the lowest loss nothing falls for long.
    suggested = float(rates[SETTLING + int(slopes[SETTLING : lowest + 1].argmin())]) if falls else None
    return RangeTest(key, rates[: len(finite)], finite, curve, suggested, float(rates[lowest]), diverged)


def _summary(found: RangeTest) -> str:
    diverged = "it did not diverge" if found.diverged is None else f"it diverged at {found.diverged:.2g}"
    if found.suggested is None:
        return (
            f"nothing to suggest for {found.key}: the loss does not fall from {found.learning_rates[0]:.2g} to "
            f"{found.learning_rates[-1]:.2g}, {diverged}"
        )
    return (
        f"{found.key}={found.suggested:.2g} suggested, where the loss falls steepest; it is lowest at "
        f"{found.lowest:.2g}, {diverged}"
    )


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
    if found.suggested is not None:
        axes.axvline(found.suggested, color="#c8402e", linestyle="--", label=f"suggested: {found.suggested:.2g}")
    axes.set_xscale("log")
    # Of a loss that left all bounds the rest of the curve would be a flat line.
    axes.set_ylim(0, 1.05 * max(found.smoothed[0], found.smoothed.min() * DIVERGED))
    axes.set_xlabel(found.key)
    axes.set_ylabel("training loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    with written_whole(run.folder / "lr_find.png") as temporary:
        figure.savefig(temporary, format="png", dpi=120)
