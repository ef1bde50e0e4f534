"""Prints the plan of a config and its cost as they are computed."""

from collections.abc import Iterable

from ml_collections import ConfigDict

from sft_jax.doctor.costs import Cost, measure
from sft_jax.doctor.finding import Report
from sft_jax.run.console import Console, duration
from sft_jax.runtime.devices import Devices
from sft_jax.runtime.estimate import size_text
from sft_jax.training.experiment import Experiment
from sft_jax.training.plan import plan_lines
from sft_jax.training.start import initial_weights, load_init, read_dataset

HEADER = f"{'size':>10}{'GFLOP / step':>15}{'memory':>11}{'ms / step':>12}{'a second':>10}{'epoch':>11}"


def add_plan(config: ConfigDict, sizes: Iterable[int], report: Report, console: Console) -> None:
    """Adds the plan of a run of `config` and its cost at each of `sizes` pixels to `report`, and prints both.

    The cost of texts is that of each length of their batches.

    Raises:
      UserError: `train` would refuse the config.
    """
    devices = Devices()
    devices.check_batch(config.batch_size, config.optimizer.accumulate)
    init = load_init(config)
    dataset = read_dataset(config, console, init=init)
    experiment = Experiment(config, dataset, devices)
    params, batch_stats, start = initial_weights(experiment, init)
    console.line("")
    for line in plan_lines(experiment, start):
        report.plan.append(line)
        console.line(line)
    console.line("")
    console.line(HEADER)
    lengths = dataset.train.lengths
    for size in sizes if lengths is None else lengths.buckets:
        steps = f"steps at {size} px" if lengths is None else f"steps of {size} tokens"
        with console.status(f"compiling and timing {steps}"):
            cost = measure(experiment, size, params, batch_stats)
        report.costs.append(cost)
        console.line(cost_line(cost, config.batch_size))
    if lengths is not None:
        console.line(f"{'all':>10}{duration(sum(cost.epoch_s for cost in report.costs)):>59}")


def cost_line(cost: Cost, batch_size: int) -> str:
    """Formats a table row below `HEADER`."""
    memory = "unknown" if cost.memory_bytes is None else size_text(cost.memory_bytes)
    return (
        f"{f'{cost.size} {cost.unit}':>10}{cost.gflop:>15,.1f}{memory:>11}{cost.step_ms:>12,.1f}"
        f"{1e3 * batch_size / cost.step_ms:>10,.0f}{duration(cost.epoch_s):>11}"
    )
