"""What a run is about to do, said before it does it."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from sft_jax.data import Dataset


def plan_lines(
    config: ConfigDict,
    dataset: Dataset,
    *,
    parameters: int,
    steps_per_epoch: int,
    resident: bool,
    devices: str,
    start: str,
) -> Iterator[str]:
    """Lines for the console.

    Args:
      config: of the run.
      dataset: of the run.
      parameters: how many numbers are trained.
      steps_per_epoch: full batches of an epoch.
      resident: whether the training images stay on the device.
      devices: in words.
      start: in words, what training starts from.
    """
    sizes = " / ".join(f"{len(split):,}" for split in (dataset.train, dataset.validation, dataset.test))
    yield from dataset.notices
    yield (
        f"data       {config.data.source}: {sizes} train / validation / test images, "
        f"{len(dataset.class_names)} classes; {'held on' if resident else 'streamed to'} the device"
    )
    yield f"model      {config.model.name}, {parameters:,} parameters, {config.precision}; {start}"
    yield (
        f"training   {config.epochs} epochs of {steps_per_epoch} steps, batch {config.batch_size}, "
        f"{config.data.size} px, {config.optimizer.name} at {config.optimizer.learning_rate:g} "
        f"({config.optimizer.schedule}), on {devices}"
    )
    left_out = len(dataset.train) - steps_per_epoch * config.batch_size
    if left_out:
        yield f"           {left_out} training images, others each time, are left out of an epoch: no full batch"
