"""What batch norm sees of a batch: whether its statistics can be taken, and whether they are any good."""

import jax
import jax.numpy as jnp

from sft_jax.errors import UserError
from sft_jax.models.layers import OneValueError
from sft_jax.runtime.devices import AXIS
from sft_jax.training.experiment import Experiment

# Of fewer images the error of a network with batch norm rises (Wu and He, 2018, arXiv:1803.08494, figure 1).
FEWEST_IMAGES = 16


def check_values(experiment: Experiment) -> None:
    """Raises UserError where batch norm would see one value a channel, which its own mean cancels, as torch does.

    Statistics are those of all devices together, but of each part of `optimizer.accumulate` by itself.
    """
    config = experiment.config
    measured = config.finetune.batch_norm == "recalibrate"
    # Measured statistics are those of whole batches.
    parts = 1 if measured else config.optimizer.accumulate
    # Two images are two values a channel, however small they have become: nothing has to be traced.
    if config.batch_size > parts:
        return
    for size in statistics_sizes(experiment):
        if _has_one_value(experiment, size):
            in_parts = f" in {parts} parts (optimizer.accumulate)" if parts > 1 else ""
            raise UserError(
                f"batch_size={config.batch_size}{in_parts} leaves batch norm one value a channel at {size} px: nothing "
                f"would be learnt; use --config.batch_size={2 * parts} or more, or "
                f"--config.finetune.batch_norm=freeze_statistics"
            )


def parts_line(experiment: Experiment) -> str | None:
    """What batch norm makes of `optimizer.accumulate`, None where that makes no difference to it."""
    parts = experiment.config.optimizer.accumulate
    if parts == 1 or experiment.config.finetune.batch_norm != "train" or not statistics_sizes(experiment):
        return None
    images = experiment.config.batch_size // parts
    line = f"each of the {parts} parts of a batch by itself (optimizer.accumulate): {images} images"
    if images >= FEWEST_IMAGES:
        return line
    return (
        f"{line}; warning: statistics of fewer than {FEWEST_IMAGES} are poor, use fewer parts, a larger batch_size or "
        f"finetune.batch_norm=freeze_statistics"
    )


def statistics_sizes(experiment: Experiment) -> list[int]:
    """Sizes in pixels of the training images of whose batches batch norm takes statistics."""
    mode = experiment.config.finetune.batch_norm
    found = {phase.size for phase in experiment.phases if mode == "recalibrate" or not phase.on_features}
    return sorted(found) if mode in ("train", "recalibrate") else []


def _has_one_value(experiment: Experiment, size: int) -> bool:
    """Whether an image of `size` pixels is a single one at some batch norm of the network."""

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
