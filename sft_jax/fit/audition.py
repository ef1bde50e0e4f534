"""Compares pretrained weights on the data: a linear probe of each, on some of the images."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict

from sft_jax.data import Dataset
from sft_jax.data.dataset import Split
from sft_jax.data.sampling import spread
from sft_jax.errors import UserError
from sft_jax.fit.costs import Meter
from sft_jax.fit.weights import Candidate
from sft_jax.run.console import Console
from sft_jax.tasks import monitor_of
from sft_jax.training.phase_programs import PhasePrograms
from sft_jax.training.start import initial_weights, load_init

# Images that a probe is fitted to, and that it is scored on.
TRAIN, VALIDATION = 600, 300


def sampled(dataset: Dataset) -> Dataset:
    """Returns a dataset of some of the images, evenly spaced in the order of the labels."""
    return dataclasses.replace(
        dataset, train=_some(dataset.train, TRAIN), validation=_some(dataset.validation, VALIDATION)
    )


def _some(split: Split, count: int) -> Split:
    order = np.argsort(split.labels, kind="stable") if "label" in split.targets else np.arange(len(split))
    return split.take(spread(order, count))


def ranked(
    candidates: Sequence[Candidate],
    config_of: Callable[[Candidate], ConfigDict],
    meter: Meter,
    seconds: float,
    console: Console,
) -> list[tuple[Candidate, str]]:
    """Scores candidates, and returns them with their scores in words, the best first.

    Args:
      candidates: those to compare, the most promising first.
      config_of: the configuration of a candidate's probe.
      meter: of the sampled dataset.
      seconds: the time after which no other one is begun; those left over are said and dropped.
      console: receives a line for each.

    Raises:
      UserError: none can be loaded.
    """
    began, scored = time.perf_counter(), list[tuple[float, Candidate, str]]()
    for number, candidate in enumerate(candidates):
        if scored and time.perf_counter() - began > seconds:
            left = ", ".join(map(str, candidates[number:]))
            console.line(f"weights    no time to try {left}; name one with --weights to use it")
            break
        try:
            config = config_of(candidate)
        except UserError as error:
            console.line(f"weights    not used: {error}")
            continue
        experiment, monitor = meter.experiment(config), monitor_of(config)
        programs = PhasePrograms(experiment, experiment.phases[0])
        params, batch_stats, _ = initial_weights(experiment, load_init(config))
        state = programs.first_state(params, batch_stats)
        weights = programs.candidates(state)["raw"]
        figures = experiment.task.summarize(programs.evaluate(*weights, programs.validation_loader))
        said = f"{monitor.words} {monitor.shown(figures[monitor.figure])} of a linear probe at {config.data.size} px"
        console.line(f"weights    {candidate}: {said}")
        scored.append((monitor.rank(figures), candidate, said))
    if not scored:
        raise UserError("none of the pretrained weights can be used, see above")
    scored.sort(key=lambda entry: -entry[0])
    return [(candidate, said) for _, candidate, said in scored]
