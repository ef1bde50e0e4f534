"""Runs of a few seconds on tiny pictures with masks."""

from mask_folders import VOID
from tiny_runs import run

# Shared by all tests, so that its programs are compiled once.
SETTINGS = {
    "task": "segmentation",
    "model__name": "fcn_tiny",
    "model__stem": "cifar",
    "data__ignore_index": VOID,
    "data__size": 16,
    "data__fit": "pad",
    "data__flip": True,
    "batch_size": 8,
    "limit_train_examples": None,
    "limit_eval_examples": None,
    "optimizer__learning_rate": 0.05,
}


def run_on(source, folder, **changes):
    """Trains on the folder `source`; returns the results."""
    return run(folder, **SETTINGS | {"data__source": f"masks:{source}"} | changes)
