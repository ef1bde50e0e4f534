"""The tasks that a network can learn, one file per task."""

import difflib

from ml_collections import ConfigDict

from sft_jax.config import flatten
from sft_jax.config.schema import KEYS
from sft_jax.data import Dataset
from sft_jax.errors import UserError
from sft_jax.tasks.base import Task
from sft_jax.tasks.classification import Classification
from sft_jax.tasks.monitor import Monitor
from sft_jax.tasks.multilabel import Multilabel
from sft_jax.tasks.regression import Regression
from sft_jax.tasks.segmentation import Segmentation
from sft_jax.tasks.text import TextClassification
from sft_jax.tasks.text_regression import TextRegression

__all__ = ["TASKS", "Monitor", "Task", "check_settings", "make", "monitor_of", "task_class", "task_named"]

# config.task -> task.
TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "multilabel": Multilabel,
    "regression": Regression,
    "segmentation": Segmentation,
    "text": TextClassification,
    "text_regression": TextRegression,
}


def task_class(config: ConfigDict) -> type[Task]:
    """Returns the task class that `config` names. Raises UserError if there is none."""
    return task_named(config.task)


def task_named(name: str) -> type[Task]:
    """Returns the task class called `name`. Raises UserError if there is none."""
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown config.task={name!r}; did you mean {near!r}?")
    return TASKS[name]


def check_settings(config: ConfigDict) -> None:
    """Raises UserError if a setting was changed that has no meaning for the task, or belongs to another one."""
    values, refused = flatten(config), dict(task_class(config).refused)
    for group in sorted({group for task in TASKS.values() for group in task.groups} - {*task_class(config).groups}):
        owners = " or ".join(f"task={name}" for name, task in TASKS.items() if group in task.groups)
        refused |= {key: f"it belongs to {owners}" for key in KEYS if key.startswith(f"{group}.")}
    if config.task != "segmentation":
        refused["data.ignore_index"] = "only masks have pixels to ignore"
    for key, why in refused.items():
        if values[key] != KEYS[key].default:
            raise UserError(f"config.{key}={values[key]} cannot be used with task={config.task}: {why}")


def make(config: ConfigDict, dataset: Dataset) -> Task:
    """Makes the task of a configuration on a dataset. Raises UserError if they do not fit."""
    check_settings(config)
    return task_class(config).create(config, dataset)


def monitor_of(config: ConfigDict) -> Monitor:
    """Returns the monitor that `config` names, by default the task's main one. Raises UserError if it is unknown."""
    monitors = task_class(config).monitors
    if config.monitor is None:
        return task_class(config).main()
    if config.monitor not in monitors:
        raise UserError(f"config.monitor={config.monitor!r} must be one of {', '.join(monitors)}, or none")
    return monitors[config.monitor]
