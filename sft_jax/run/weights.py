"""The trained weights of a run, for use outside it."""

import json
from pathlib import Path

from sft_jax import models
from sft_jax.models.weights import Weights
from sft_jax.run.folder import Run
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
    prefix = f"{models.architecture(config.model.name).head}."
    head = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    # Early versions did not record what a task has learnt besides the weights.
    learnt = restored.metadata.get("progress", {}).get("learnt", {})
    released, learnt = task_class(config).released(head, learnt)
    arrays |= {prefix + leaf: array for leaf, array in released.items()}
    metadata = {"source": str(workdir), "task": config.task, "learnt": json.dumps(learnt)}
    licence = run.record().get("licence")
    if licence is not None:
        metadata["licence"] = licence
    if "preprocess" in restored.metadata:  # early versions did not record it
        metadata["preprocess"] = json.dumps(restored.metadata["preprocess"])
    return Weights(arrays, config.model.name, tuple(restored.metadata["class_names"]), metadata)
