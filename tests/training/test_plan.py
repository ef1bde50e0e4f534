"""Tests of the plan that a run prints, and of XLA's estimates of the cost of a step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import TINY

from sft_jax.config import complete
from sft_jax.data import load_dataset
from sft_jax.runtime.devices import Devices
from sft_jax.runtime.estimate import compile_step, flops, size_text
from sft_jax.training.experiment import Experiment
from sft_jax.training.plan import change_lines, memory_line, plan_lines

VALUES = TINY | {"epochs": 4, "limit_train_examples": None}


def plan(**changes):
    config = complete(VALUES | {key.replace("__", "."): value for key, value in changes.items()})
    dataset = load_dataset(config.data, seed=0, limit_eval=config.limit_eval_examples)
    experiment = Experiment(config, dataset, Devices())
    return experiment, list(plan_lines(experiment, "random weights"))


def test_the_plan_of_a_plain_run():
    experiment, lines = plan()
    total = sum(leaf.size for leaf in experiment.network.params.values())
    assert lines[:-1] == [
        "data       digits:0-4: 541 / 61 / 61 train / validation / test images, 5 classes",
        "           stored on the device",
        "model      tiny at 16 px, float32; random weights",
        "batch norm with batch statistics (finetune.batch_norm=train)",
        "training   4 epochs of 8 steps, batch 64 (finetune.method=full)",
        f"           all epochs: 16 px; {total:,} parameters trained, 0 frozen",
        "           29 training images per epoch, different ones each time, are dropped: no full batch",
        "optimizer  sgd, learning rate 0.02 (constant), momentum 0.9",
        "images     random crops with 2 px of padding",
    ]
    assert lines[-1].startswith("devices    8 x cpu, ")
    assert lines[-1].endswith(" of memory free per device")


def test_phases_are_listed_with_their_frozen_parameters():
    experiment, lines = plan(
        finetune__method="head_then_full",
        finetune__head_epochs=1,
        finetune__freeze=("conv1.*", "bn1.*"),
        finetune__learning_rates=(("fc.*", 1.0), (".*", 0.1)),
        finetune__batch_norm="freeze_statistics",
        data__size_schedule=(("8", 0.5),),
    )
    sizes = {name: leaf.size for name, leaf in experiment.network.params.items()}
    total, head = sum(sizes.values()), sizes["fc.kernel"] + sizes["fc.bias"]
    stem = sum(size for name, size in sizes.items() if name.startswith(("conv1.", "bn1.")))
    rest = f"{total - stem:,} parameters trained, {stem:,} frozen, learning rate times 0.1 to 1"
    start = lines.index("training   4 epochs of 8 steps, batch 64 (finetune.method=head_then_full)") + 1
    assert lines[start : start + 3] == [
        f"           epoch 1: head only, on precomputed features; {head:,} parameters trained, {total - head:,} frozen",
        f"           epoch 2: 8 px; {rest}",
        f"           epochs 3-4: 16 px; {rest}",
    ]
    assert "batch norm with frozen running statistics of init (finetune.batch_norm=freeze_statistics)" in lines


def test_a_head_on_features_uses_no_crops_and_no_batch_statistics():
    _, lines = plan(finetune__method="head", data__flip=True)
    assert "batch norm with frozen running statistics of init (finetune.batch_norm=train)" in lines
    assert "images     original and mirrored" in lines


def test_settings_that_differ_from_the_defaults_are_listed():
    _, lines = plan(
        optimizer__name="adamw",
        optimizer__schedule="cosine",
        optimizer__weight_decay=0.01,
        regularization__mixup=0.2,
        data__auto_augment="trivial",
        data__flip=True,
        data__crop_padding=0,
    )
    assert "optimizer  adamw, learning rate 0.02 (cosine), weight_decay=0.01" in lines
    assert "images     random horizontal flips, auto_augment=trivial" in lines
    assert "           mixup=0.2" in lines
    _, lines = plan(optimizer__name="lion", optimizer__nesterov=True, optimizer__momentum=0.5)
    assert "optimizer  lion, learning rate 0.02 (constant), momentum=0.5, nesterov=True ignored (sgd only)" in lines
    _, lines = plan(data__crop_padding=0)
    assert "images     not augmented" in lines


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"optimizer__accumulate": 2},
            "           per micro-batch of 32 images (optimizer.accumulate=2)",
        ),
        (
            {"optimizer__accumulate": 8},
            "           per micro-batch of 8 images (optimizer.accumulate=8); warning: statistics of fewer than 16 "
            "images are noisy, use a lower optimizer.accumulate, a larger batch_size or "
            "finetune.batch_norm=freeze_statistics",
        ),
        ({"optimizer__accumulate": 8, "finetune__batch_norm": "freeze_statistics"}, None),
        ({"optimizer__accumulate": 8, "finetune__method": "head"}, None),
        ({}, None),
    ],
)
def test_batch_norm_per_micro_batch_is_reported(changes, line):
    _, lines = plan(**changes)
    assert [said for said in lines if "per micro-batch" in said] == ([line] if line else [])


def test_the_learning_rate_of_the_head_is_listed_where_it_is_used():
    head = {"finetune__head_learning_rate": 0.3}
    for method in ("head_then_full", "gradual"):
        _, lines = plan(finetune__method=method, finetune__head_epochs=1, **head)
        (line,) = [line for line in lines if "(finetune.head_learning_rate)" in line]
        assert line.startswith("           epoch 1: ")
        assert line.endswith(" frozen, learning rate 0.3 (finetune.head_learning_rate)")


def changed(experiment, step, **before):
    values = VALUES | {key.replace("__", "."): value for key, value in before.items()}
    return list(change_lines(experiment, complete(values), step))


def test_a_changed_number_of_epochs_reports_the_new_schedule():
    """After 4 of 4 epochs of 8 steps, a cosine schedule is extended to 6 epochs, so that its rate rises again."""
    experiment, _ = plan(epochs=6, optimizer__schedule="cosine")
    last, following, end = (0.01 * (1 + np.cos(np.pi * fraction)) for fraction in (31 / 32, 32 / 48, 47 / 48))
    assert changed(experiment, 32, optimizer__schedule="cosine") == [
        "changed    epochs from 4 to 6",
        f"           learning rate (optimizer.schedule=cosine): {last:.3g} at the last step, {following:.3g} at the "
        f"next, {end:.3g} at the end",
    ]
    assert changed(experiment, 48, epochs=9, optimizer__schedule="cosine")[1].endswith(
        "at the last step; no epochs remain"
    )


def test_the_learning_rate_of_the_next_phase_is_reported():
    phases = {"finetune__method": "head_then_full", "finetune__head_epochs": 3, "finetune__head_learning_rate": 0.5}
    experiment, _ = plan(epochs=5, **phases)
    (_, line) = changed(experiment, 24, **phases)
    assert line.endswith("0.5 at the last step, 0.02 at the next, 0.02 at the end")


def test_a_change_that_keeps_the_learning_rate_is_one_line():
    experiment, _ = plan(save_minutes=2.0)
    assert changed(experiment, 8, save_minutes=5.0) == ["changed    save_minutes from 5.0 to 2.0"]


def test_the_memory_of_a_step_is_reported():
    devices = Devices()
    few, many = 3 << 20, devices.free_bytes() + (1 << 40)
    line = "memory     3 MiB per device for a step, including weights and data (XLA's estimate)"
    assert memory_line(few, devices) == line
    assert " free, use a smaller batch_size" in memory_line(many, devices)


def test_a_step_is_compiled_once_and_its_memory_counted():
    devices, traced = Devices(), []

    def program(weights, images):
        traced.append(1)
        return weights + jax.lax.psum(images.sum(), "data")

    compiled = devices.compile(program, sharded=(False, True), donate=(0,))
    weights = devices.replicate(np.ones((256, 1024), np.float32))
    images = devices.shard(np.ones((1, 8, 1024), np.float32))
    needed = compile_step(compiled, weights, images)
    # Weights and one image on each device; the new weights take the place of the donated ones.
    assert 4 * 1024 * 257 <= needed < 4 * 1024 * 257 + 4096
    jax.block_until_ready(compiled(weights, images))
    assert len(traced) == 1


def test_floating_point_operations_are_counted():
    matrices = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((30, 40), (40, 50))]
    assert flops(jnp.dot, *matrices) == 2 * 30 * 40 * 50


def test_convolutions_are_counted_as_an_accelerator_computes_them():
    """The literature reports 1.8 billion multiply-adds per image for ResNet-18 at 224 px, including padding."""
    from sft_jax import models

    network = models.Network.abstract(models.builder(complete({}).model, 1000))
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)

    def logits(params, batch_stats, images):
        return network.apply(params, batch_stats, images, train=False)[0]

    assert flops(logits, network.params, network.batch_stats, images) == pytest.approx(2 * 1.8e9, rel=0.1)


def test_sizes_have_units():
    assert size_text(171 * 2**20) == "171 MiB"
    assert size_text(2.1 * 2**30) == "2.1 GiB"
