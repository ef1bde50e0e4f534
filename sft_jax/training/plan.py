"""The plan of a run, printed before it starts."""

import copy
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from sft_jax.config import flatten
from sft_jax.config.schema import KEYS
from sft_jax.data.augment import parts
from sft_jax.data.sampling import class_draws
from sft_jax.data.sources.known import source_of
from sft_jax.models.precision import factors
from sft_jax.runtime.devices import Devices
from sft_jax.runtime.estimate import size_text
from sft_jax.training import phases
from sft_jax.training.batch_norm import parts_line
from sft_jax.training.experiment import Experiment
from sft_jax.training.phase_programs import PhasePrograms
from sft_jax.training.phases import Phase

# Keys of the section `data` that the plan lists if they are not the defaults.
PARTS = (
    "crop_ratio",
    "vertical_flip",
    "rotation",
    "auto_augment",
    "rand_augment_operations",
    "rand_augment_magnitude",
    "color_jitter",
    "grayscale",
    "blur",
    "random_erasing",
    "repeats",
)
PLACEMENT = {
    "replicated": "stored on the device",
    "sharded": "a share stored on each device, exchanged once an epoch",
    "streamed": "streamed to the device",
}
BATCH_NORM = {
    "train": "with batch statistics",
    "freeze_statistics": "with frozen running statistics of init",
    "freeze": "frozen: statistics, scale and bias",
    "recalibrate": "with frozen statistics, re-estimated on the training images",
}


def _precision(config: ConfigDict, experiment: Experiment) -> str:
    device = experiment.devices.devices[0]
    # GPUs have TF32 from compute capability 8.0 on.
    computed = factors(config.precision, device.platform, tf32=float(getattr(device, "compute_capability", 0)) >= 8)
    return config.precision + ("" if computed == config.precision else f" (products: {computed})")


def plan_lines(experiment: Experiment, start: str) -> Iterator[str]:
    """Yields the lines of the plan for the console; `start` describes the initial weights."""
    config, dataset = experiment.config, experiment.dataset
    yield from dataset.notices
    yield from _data(experiment)
    size = experiment.task.size_text(config, config.data.size)
    yield f"model      {config.model.name} at {size}, {_precision(config, experiment)}; {start}"
    on_features = all(phase.on_features for phase in experiment.phases)
    norm = config.finetune.batch_norm
    used = BATCH_NORM["freeze_statistics" if on_features and norm == "train" else norm]
    if experiment.network.batch_stats:
        head = "; the head's with batch statistics" if experiment.task.dense and norm != "train" else ""
        yield f"batch norm {used}{head} (finetune.batch_norm={norm})"
    parts = parts_line(experiment)
    if parts is not None:
        yield f"           {parts}"
    yield (
        f"training   {config.epochs} epochs of {experiment.steps_per_epoch} steps, batch {config.batch_size} "
        f"(finetune.method={config.finetune.method})"
    )
    for phase in experiment.phases:
        yield f"           {_phase(phase, experiment)}"
    left_out = len(dataset.train) - experiment.steps_per_epoch * config.batch_size
    if config.data.balance != "none":
        yield f"           {_balance(experiment)}"
    elif left_out:
        what = f"{left_out} training {experiment.task.unit}s"
        yield f"           {what} per epoch, different ones each time, are dropped: no full batch"
    yield f"optimizer  {_optimizer(config)}"
    lengths = experiment.train_loader.split.lengths
    if lengths is None:
        yield f"images     {_augmentation(config, on_features)}"
    else:
        cut = f"{', '.join(map(str, lengths.buckets[:-1]))} or {lengths.buckets[-1]}".removeprefix(" or ")
        yield f"texts      batches of similar lengths, padded to {cut} tokens"
    regularization = _changed(config, "regularization")
    if regularization:
        yield f"           {regularization}"
    devices = experiment.devices
    yield f"devices    {devices}, {size_text(devices.free_bytes())} of memory free{_on_each(devices)}"


def change_lines(experiment: Experiment, before: ConfigDict, step: int) -> Iterator[str]:
    """Yields lines on how a run resumed after `step` steps deviates from its previous configuration, `before`."""
    old, new = flatten(before), flatten(experiment.config)
    yield "changed    " + ", ".join(f"{key} from {old[key]} to {new[key]}" for key in new if old[key] != new[key])
    if old["epochs"] == new["epochs"] or not step:
        return
    earlier = copy.copy(experiment)
    earlier.config = before
    earlier.phases = phases.phases(before, experiment.network)
    steps = experiment.config.epochs * experiment.steps_per_epoch
    last, following, end = (
        _learning_rate(owner, step)
        for owner, step in ((earlier, step - 1), (experiment, step), (experiment, steps - 1))
    )
    schedule = f"           learning rate (optimizer.schedule={experiment.config.optimizer.schedule})"
    if step >= steps:
        yield f"{schedule}: {last:.3g} at the last step; no epochs remain"
    else:
        yield f"{schedule}: {last:.3g} at the last step, {following:.3g} at the next, {end:.3g} at the end"


def _learning_rate(experiment: Experiment, step: int) -> float:
    """Returns the learning rate of step `step`, counted from 0."""
    return PhasePrograms(
        experiment, phases.phase_of(experiment.phases, step // experiment.steps_per_epoch)
    ).learning_rate(step)


def memory_line(needed: int, devices: Devices) -> str:
    """Reports the bytes that the compiled step needs on each device; warns if that is more than is free."""
    free = devices.free_bytes()
    warning = f"; warning: only {size_text(free)} free, use a smaller batch_size" if needed > free else ""
    where = _on_each(devices)
    return f"memory     {size_text(needed)}{where} for a step, including weights and data (XLA's estimate){warning}"


def _on_each(devices: Devices) -> str:
    return " per device" if devices.count > 1 else ""


def _data(experiment: Experiment) -> Iterator[str]:
    config, dataset = experiment.config.data, experiment.dataset
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    sizes = " / ".join(f"{len(split):,}" for split in splits.values())
    yield (
        f"data       {config.source}: {sizes} train / validation / test {experiment.task.unit}s, "
        f"{experiment.task.described()}"
    )
    where = PLACEMENT[experiment.train_loader.placement]
    if source_of(config).has_splits:
        where = f"splits {' / '.join(config[name] for name in splits)}; {where}"
    yield f"           {where}"


def _balance(experiment: Experiment) -> str:
    """Reports how often images of the largest and of the smallest class are drawn."""
    names = experiment.dataset.class_names
    labels, balance = experiment.dataset.train.labels, experiment.config.data.balance
    counts = np.bincount(labels)
    drawn = class_draws(labels, experiment.steps_per_epoch * experiment.config.batch_size, balance)
    present = np.flatnonzero(counts)
    largest, smallest = present[counts[present].argmax()], present[counts[present].argmin()]
    frequencies = (
        f"{drawn[label] / counts[label]:.3g} for {names[label]} ({counts[label]:,} {experiment.task.unit}s)"
        for label in (largest, smallest)
    )
    one = "an image" if experiment.task.unit == "image" else f"a {experiment.task.unit}"
    return f"average draws of {one} per epoch: {', '.join(frequencies)} (data.balance={balance})"


def _phase(phase: Phase, experiment: Experiment) -> str:
    sizes = {name: leaf.size for name, leaf in experiment.network.params.items()}
    trained = sum(sizes[name] for name in phase.trained)
    frozen = sum(sizes.values()) - trained
    first, last = phase.first + 1, phase.stop
    epochs = f"epoch {first}" if first == last else f"epochs {first}-{last}"
    epochs = "all epochs" if len(experiment.phases) == 1 else epochs
    where = (
        "head only, on precomputed features"
        if phase.on_features
        else experiment.task.size_text(experiment.config, phase.size)
    )
    factors = {format(factor, ".3g") for factor in phase.multipliers.values()}
    rates = "" if factors == {"1"} else f", learning rate times {min(factors, key=float)} to {max(factors, key=float)}"
    head_rate = experiment.config.finetune.head_learning_rate
    peak = f", learning rate {head_rate:g} (finetune.head_learning_rate)" if phase.head_only and head_rate else ""
    return f"{epochs}: {where}; {trained:,} parameters trained, {frozen:,} frozen{peak}{rates}"


def _optimizer(config: ConfigDict) -> str:
    optimizer = config.optimizer
    summary = f"{optimizer.name}, learning rate {optimizer.learning_rate:g} ({optimizer.schedule})"
    named = ("name", "learning_rate", "schedule", "momentum")
    if optimizer.name == "sgd":
        changed = _changed(config, "optimizer", leave_out=named)
        return ", ".join(filter(None, [summary, f"momentum {optimizer.momentum:g}", changed]))
    changed = _changed(config, "optimizer", leave_out=(*named, "nesterov"))
    unused = _changed(config, "optimizer", only=("momentum", "nesterov"))
    return ", ".join(filter(None, [summary, changed, unused and f"{unused} ignored (sgd only)"]))


def _augmentation(config: ConfigDict, on_features: bool) -> str:
    data = parts(config.data)
    if on_features:
        return "original and mirrored" if data["flip"] else "not augmented"
    low, high = data["crop_scale"] or (0, 0)
    padded = f"random crops with {data['crop_padding']} px of padding" if data["crop_padding"] else ""
    augmentations = [
        f"random resized crops of {low:.0%} to {high:.0%} of the area (no padding)" if high else padded,
        "random horizontal flips" if data["flip"] else "",
        *(f"{name}={data[name]}" for name in PARTS if data[name] != KEYS[f"data.{name}"].default),
    ]
    return ", ".join(filter(None, augmentations)) or "not augmented"


def _changed(config: ConfigDict, group: str, *, leave_out: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> str:
    """Returns a group's keys with non-default values, e.g. "weight_decay=0.0005, nesterov=True"."""
    return ", ".join(
        f"{name}={value}"
        for name, value in flatten(config[group]).items()
        if name not in leave_out and (name in only or not only) and value != KEYS[f"{group}.{name}"].default
    )
