"""The trained weights of a run, for use outside it."""

import json
from pathlib import Path

from sft_jax import models
from sft_jax.models.weights import Weights
from sft_jax.run.folder import Run
from sft_jax.run.progress import Progress
from sft_jax.tasks import task_class


def load_run_weights(workdir: Path, which: str = "best") -> Weights:
    """Loads the weights of a run's "best" or "latest" checkpoint, with its architecture, class names and task.

    The head is that of `Task.released`.

    Raises:
      UserError: there is no run or no such checkpoint, or it cannot be read.
    """
    run = Run(workdir)
    config = run.config()
    restored = run.restored(which)
    arrays = {
        key.partition("/")[2]: array
        for key, array in restored.arrays.items()
        if key.startswith(("params/", "batch_stats/"))
    }
    names = {f"{models.architecture(config.model.name).head}.{leaf}": leaf for leaf in ("kernel", "bias")}
    head, learnt = task_class(config).released(
        {leaf: arrays[name] for name, leaf in names.items()}, Progress.from_json(restored.metadata["progress"]).learnt
    )
    arrays |= {name: head[leaf] for name, leaf in names.items()}
    metadata = {"source": str(workdir), "task": config.task, "learnt": json.dumps(learnt)}
    licence = run.record().get("licence")
    if licence is not None:
        metadata["licence"] = licence
    if "preprocess" in restored.metadata:  # early versions did not record it
        metadata["preprocess"] = json.dumps(restored.metadata["preprocess"])
    return Weights(arrays, config.model.name, tuple(restored.metadata["class_names"]), metadata)
