"""Checks that batches are large enough for batch norm's statistics."""

import jax
import jax.numpy as jnp

from sft_jax.errors import UserError
from sft_jax.models.layers import OneValueError
from sft_jax.runtime.devices import AXIS
from sft_jax.training.experiment import Experiment

# With smaller batches the error of networks with batch norm rises (Wu and He, 2018, arXiv:1803.08494, figure 1).
FEWEST_IMAGES = 16


def check_values(experiment: Experiment) -> None:
    """Raises UserError if some batch norm would see a single value per channel, which its mean cancels, as torch does.

    Statistics are taken over all devices, but separately for each micro-batch of `optimizer.accumulate`.
    """
    config = experiment.config
    measured = config.finetune.batch_norm == "recalibrate"
    # Recalibration uses whole batches.
    parts = 1 if measured else config.optimizer.accumulate
    # Two images give at least two values per channel, so that nothing has to be traced.
    if config.batch_size > parts:
        return
    for size in statistics_sizes(experiment):
        if _has_one_value(experiment, size):
            in_parts = f" in {parts} micro-batches (optimizer.accumulate)" if parts > 1 else ""
            raise UserError(
                f"batch_size={config.batch_size}{in_parts} leaves batch norm one value per channel at {size} px, which "
                f"it normalises to 0; use --config.batch_size={2 * parts} or more, or "
                f"--config.finetune.batch_norm=freeze_statistics"
            )


def parts_line(experiment: Experiment) -> str | None:
    """Describes how `optimizer.accumulate` affects batch norm; None if it does not."""
    parts = experiment.config.optimizer.accumulate
    if parts == 1 or experiment.config.finetune.batch_norm != "train" or not statistics_sizes(experiment):
        return None
    images = experiment.config.batch_size // parts
    line = f"per micro-batch of {images} images (optimizer.accumulate={parts})"
    if images >= FEWEST_IMAGES:
        return line
    return (
        f"{line}; warning: statistics of fewer than {FEWEST_IMAGES} images are noisy, use a lower optimizer.accumulate,"
        f" a larger batch_size or finetune.batch_norm=freeze_statistics"
    )


def statistics_sizes(experiment: Experiment) -> list[int]:
    """Returns the image sizes, in pixels, at which batch norm computes batch statistics."""
    if not experiment.network.batch_stats:
        return []
    mode = experiment.config.finetune.batch_norm
    sizes = {phase.size for phase in experiment.phases if mode == "recalibrate" or not phase.on_features}
    return sorted(sizes) if mode in ("train", "recalibrate") else []


def _has_one_value(experiment: Experiment, size: int) -> bool:
    """Returns whether an image of `size` pixels has shrunk to a single value per channel at some batch norm."""

    network = experiment.network

    def logits(params, batch_stats, images) -> jax.Array:
        return network.apply(params, batch_stats, images, train=True)[0]

    on_one_device = jax.vmap(logits, (None, None, 0), axis_name=AXIS)
    image = jax.ShapeDtypeStruct((1, 1, size, size, 3), jnp.float32)
    try:
        jax.eval_shape(on_one_device, network.params, network.batch_stats, image)
    except OneValueError:
        return True
    return False
