"""The learning-rate range test: measures the loss while the learning rate grows from step to step.

Smith, 2017, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), with the exponential growth and
loss smoothing that later became standard. Only the curve is saved: it starts no run and changes none.
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
# Decay of the moving average that ends the test; it is bias-corrected as in Adam.
KEPT = 0.9
# The test ends when this average reaches DIVERGED times its minimum, ignoring the first SETTLING steps.
DIVERGED, SETTLING = 4.0, 10
# Standard deviation, in steps, of the Gaussian weights of the local linear fit. They are centred on each step, because
# a moving average would lag behind the loss.
SMOOTHING = 4.0
# A suggestion needs a loss that falls by CERTAIN standard deviations of its smoothed noise and by this fraction.
CERTAIN, WORTHWHILE = 6.0, 0.02


class RangeTest(NamedTuple):
    """The curve of a range test and the learning rate it suggests.

    Attributes:
      key: the config key that the learning rates are values of.
      learning_rates, losses, smoothed: one value per step, up to the last finite loss.
      suggested: the learning rate at which the smoothed loss falls most steeply; None if it does not fall.
      lowest: the learning rate at which the smoothed loss is lowest.
      diverged: the learning rate at which the loss diverged; None if it did not.
    """

    key: str
    learning_rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggested: float | None
    lowest: float
    diverged: float | None


def find_learning_rate(config: ConfigDict, run: Run, console: Console) -> RangeTest:
    """Runs the test for `config` and writes lr_find.json and lr_find.png to the folder of `run`.

    It starts from a run's initial weights and uses the last phase, which trains all trainable parameters; for
    head_then_full the head is solved first, as before the first epoch of a run. There is no schedule.

    Raises:
      UserError: the configuration, data or weights are invalid.
      DivergedError: the loss is not finite in the first steps.
    """
    if config.optimizer.name.startswith("schedule_free"):
        raise UserError(
            f"optimizer.name={config.optimizer.name} uses a constant learning rate, which a range test cannot vary; "
            f"choose another optimizer.name"
        )
    if run.folder.exists() and not run.folder.is_dir():
        raise UserError(f"--workdir {run.folder} is a file; give a folder")
    devices = Devices()
    devices.check_batch(config.batch_size, config.optimizer.accumulate)
    init = load_init(config)
    experiment = Experiment(config, read_dataset(config, console, init=init), devices)
    params, batch_stats, start = initial_weights(experiment, init)
    with StopRequest() as stop, console.progress("learning-rate range test", STEPS) as bar:
        losses: list[float] = []
        for loss in measured_losses(experiment, params, batch_stats):
            losses.append(loss)
            bar.advance(1, f"loss {loss:.4f}")
            if stop or has_diverged(losses):
                break
    if stop:
        raise KeyboardInterrupt
    result = judge(losses, *meaning(experiment))
    _write(result, run, config)
    console.conclude(f"learning rate: {_summary(result)}; {start}; see {run.folder / 'lr_find.png'}")
    return result


def meaning(experiment: Experiment) -> tuple[str, float]:
    """Returns the config key of the tested learning rate, and the factor that a run applies to its value."""
    config = experiment.config
    of_head = experiment.phases[-1].head_only and config.finetune.head_learning_rate is not None
    key = "finetune.head_learning_rate" if of_head else "optimizer.learning_rate"
    reference = config.optimizer.reference_batch
    return key, 1.0 if reference is None else config.batch_size / reference


def rate(step: Any) -> jax.Array:
    """Returns the learning rate of step `step`, counted from 0."""
    fraction = jnp.asarray(step, jnp.float32) / (STEPS - 1)
    return LOWEST * (HIGHEST / LOWEST) ** fraction


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
    """Returns the bias-corrected exponential moving average of `losses`, by step."""
    average, averages = 0.0, []
    for step, loss in enumerate(losses, 1):
        average = KEPT * average + (1 - KEPT) * loss
        averages.append(average / (1 - KEPT**step))
    return np.array(averages)


def has_diverged(losses: Sequence[float]) -> bool:
    """Returns whether the last loss is not finite, or the moving average exceeds `DIVERGED` times its minimum."""
    if not np.isfinite(losses[-1]):
        return True
    averages = running_average(losses)
    return len(losses) > SETTLING and averages[-1] > DIVERGED * averages[SETTLING:].min()


def fitted_lines(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns value and slope, at each step, of a linear fit to the losses with Gaussian weights centred on it."""
    steps = np.arange(len(losses), dtype=np.float64)
    away = steps[None] - steps[:, None]
    weights = np.exp(-((away / SMOOTHING) ** 2) / 2)
    weights /= weights.sum(1, keepdims=True)
    centre, mean = (weights * away).sum(1, keepdims=True), weights @ losses
    slopes = (weights * (away - centre)) @ losses / (weights * (away - centre) ** 2).sum(1)
    return mean - slopes * centre[:, 0], slopes


def judge(losses: Sequence[float], key: str = "optimizer.learning_rate", scale: float = 1.0) -> RangeTest:
    """Derives a learning rate from the losses of a range test.

    Args:
      losses: one per step; the last may be infinite or NaN.
      key: see `meaning`.
      scale: see `meaning`.

    Raises:
      DivergedError: too few losses are finite.
    """
    rates = np.array([float(rate(step)) for step in range(len(losses))]) / scale
    diverged = float(rates[-1]) if has_diverged(losses) else None
    finite = np.array([loss for loss in losses if np.isfinite(loss)])
    if len(finite) < SETTLING + 2:
        raise DivergedError(
            f"the loss is already {losses[-1]} at {key}={rates[-1]:.2g}; no learning rate can be suggested"
        )
    curve, slopes = fitted_lines(finite)
    lowest = int(curve.argmin())
    start = finite[:SETTLING].mean()  # these steps are too small to change the loss
    fall = start - curve[lowest]
    # Estimated from differences between steps; the median is robust to a few exploding steps.
    noise = np.median(np.abs(np.diff(finite - curve))) / 0.954
    # Gaussian smoothing averages as many as 2 sqrt(pi) SMOOTHING independent steps.
    smoothed_noise = noise / np.sqrt(2 * np.sqrt(np.pi) * SMOOTHING)
    falls = lowest > SETTLING and fall > max(CERTAIN * smoothed_noise, WORTHWHILE * start)
    # The slope is per step, i.e. per log learning rate; falls beyond the lowest loss are noise.
    suggested = float(rates[SETTLING + int(slopes[SETTLING : lowest + 1].argmin())]) if falls else None
    return RangeTest(key, rates[: len(finite)], finite, curve, suggested, float(rates[lowest]), diverged)


def _summary(result: RangeTest) -> str:
    diverged = "it did not diverge" if result.diverged is None else f"it diverged at {result.diverged:.2g}"
    if result.suggested is None:
        return (
            f"no suggestion for {result.key}: the loss does not fall from {result.learning_rates[0]:.2g} to "
            f"{result.learning_rates[-1]:.2g}, {diverged}"
        )
    return (
        f"{result.key}={result.suggested:.2g} suggested, where the loss falls most steeply; it is lowest at "
        f"{result.lowest:.2g}, {diverged}"
    )


def _write(result: RangeTest, run: Run, config: ConfigDict) -> None:
    values = {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in zip(result._fields, result, strict=True)
    }
    write_json(run.folder / "lr_find.json", {**values, "config": json.loads(json.dumps(config.to_dict()))})
    figure = Figure((7.5, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(result.learning_rates, result.losses, color="#c3c9ce", linewidth=1, label="batch loss")
    axes.plot(result.learning_rates, result.smoothed, color="#33608c", linewidth=2, label="smoothed")
    if result.suggested is not None:
        axes.axvline(result.suggested, color="#c8402e", linestyle="--", label=f"suggested: {result.suggested:.2g}")
    axes.set_xscale("log")
    # A diverged loss would flatten the rest of the curve.
    axes.set_ylim(0, 1.05 * max(result.smoothed[0], result.smoothed.min() * DIVERGED))
    axes.set_xlabel(result.key)
    axes.set_ylabel("training loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    with written_whole(run.folder / "lr_find.png") as temporary:
        figure.savefig(temporary, format="png", dpi=120)
