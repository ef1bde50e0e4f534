"""What is learnt: one file a task."""

import difflib

from ml_collections import ConfigDict

from sft_jax.data import Dataset
from sft_jax.errors import UserError
from sft_jax.tasks.base import Monitor, Task
from sft_jax.tasks.classification import Classification

__all__ = ["TASKS", "Monitor", "Task", "make", "monitor_of", "task_class"]

# By the config's `task`.
TASKS: dict[str, type[Task]] = {"classification": Classification}


def task_class(config: ConfigDict) -> type[Task]:
    """Returns the kind of task that `config` names. Raises UserError where there is none of this name."""
    if config.task not in TASKS:
        near = difflib.get_close_matches(config.task, TASKS, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown config.task={config.task!r}; the nearest one is {near!r}")
    return TASKS[config.task]


def make(config: ConfigDict, dataset: Dataset) -> Task:
    """Makes the task of a configuration on a data set. Raises UserError where they do not fit."""
    return task_class(config).create(config, dataset)


def monitor_of(config: ConfigDict) -> Monitor:
    """Returns the monitor that `config` names, or the task's own. Raises UserError where the task has no such one."""
    monitors = task_class(config).monitors
    if config.monitor is None:
        return task_class(config).main()
    if config.monitor not in monitors:
        raise UserError(f"config.monitor={config.monitor!r} must be one of {', '.join(monitors)}, or none")
    return monitors[config.monitor]
