"""Makes finished runs without training: random weights in a run's folder."""

import jax
import numpy as np

from sft_jax import models
from sft_jax.config import complete
from sft_jax.run.folder import Run
from sft_jax.run.progress import Progress

NAMES = ("ant", "bee", "cat", "dög", "eel", "fox")


def make_run(folder, seed=0, preprocess=None, names=NAMES, learnt=None, **changes):
    """Makes a run of the network "tiny", or of `model__name`, whose batch statistics differ from their initial values.

    The preprocessing of its images is recorded as `preprocess`, if given, and `learnt` as what its task needs.
    """
    values = {"model.name": "tiny", "data.size": 16, "data.mean": (0.4, 0.5, 0.6), "data.std": (0.2, 0.3, 0.25)}
    config = complete(values | {key.replace("__", "."): value for key, value in changes.items()})
    network = models.Network.abstract(models.builder(config.model, len(names)))
    generator = np.random.default_rng(seed)
    parts = {"params": network.params, "batch_stats": network.batch_stats}
    arrays = {
        f"{part}/{key}": _drawn(key, leaf.shape, generator)
        for part, leaves in parts.items()
        for key, leaf in leaves.items()
    }
    run = Run(folder)
    run.write_config(config, licence="CC-BY-NC-4.0")
    metadata = {"class_names": list(names), "progress": Progress(learnt=learnt or {}).to_json()}
    if preprocess is not None:
        metadata["preprocess"] = preprocess.to_json()
    for name in ("latest", "best"):
        run.checkpoints.save(name, 5, arrays, metadata)
    return run


def _drawn(key, shape, generator):
    """Draws values of realistic size; the network's own initialisation takes seconds to compile."""
    if key.endswith("kernel"):
        values = generator.standard_normal(shape) * (2 / np.prod(shape[:-1])) ** 0.5
    elif key.endswith(("scale", "var")):
        values = generator.uniform(0.5, 1.5, shape)
    else:
        values = generator.uniform(-0.2, 0.2, shape)
    return jax.numpy.asarray(values, jax.numpy.float32)
