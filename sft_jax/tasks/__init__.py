"""The tasks that a network can learn, one file per task."""

import difflib

from ml_collections import ConfigDict

from sft_jax.data import Dataset
from sft_jax.errors import UserError
from sft_jax.tasks.base import Monitor, Task
from sft_jax.tasks.classification import Classification

__all__ = ["TASKS", "Monitor", "Task", "make", "monitor_of", "task_class"]

# config.task -> task.
TASKS: dict[str, type[Task]] = {"classification": Classification}


def task_class(config: ConfigDict) -> type[Task]:
    """Returns the task class that `config` names. Raises UserError if there is none."""
    if config.task not in TASKS:
        near = difflib.get_close_matches(config.task, TASKS, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown config.task={config.task!r}; did you mean {near!r}?")
    return TASKS[config.task]


def make(config: ConfigDict, dataset: Dataset) -> Task:
    """Makes the task of a configuration on a dataset. Raises UserError if they do not fit."""
    return task_class(config).create(config, dataset)


def monitor_of(config: ConfigDict) -> Monitor:
    """Returns the monitor that `config` names, by default the task's main one. Raises UserError if it is unknown."""
    monitors = task_class(config).monitors
    if config.monitor is None:
        return task_class(config).main()
    if config.monitor not in monitors:
        raise UserError(f"config.monitor={config.monitor!r} must be one of {', '.join(monitors)}, or none")
    return monitors[config.monitor]
