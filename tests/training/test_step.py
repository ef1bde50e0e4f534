"""Tests that steps and evaluation agree on one and eight devices, in memory and streamed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tiny_runs import builder

from sft_jax import data
from sft_jax.config import complete
from sft_jax.data.dataset import ArraySplit, StreamedSplit
from sft_jax.data.loader import STREAMED_STEPS, Loader, StepsPerCall
from sft_jax.data.sampling import epoch_order
from sft_jax.errors import UserError
from sft_jax.models import Network, initial_arrays
from sft_jax.runtime.devices import AXIS, Devices
from sft_jax.tasks.classification import Classification
from sft_jax.tasks.classification_sums import EvalSums, eval_sums, summarize
from sft_jax.tasks.statistics import CALIBRATION_BINS
from sft_jax.training import optimizer
from sft_jax.training.evaluator import Evaluator
from sft_jax.training.state import TrainState
from sft_jax.training.step import make_train_step
from sft_jax.training.steps import make_train_steps

CLASSES, BATCH, STEPS = 5, 16, 10
CONFIG = complete({"data.size": 32, "optimizer.learning_rate": 0.001, "optimizer.weight_decay": 1e-4})


BUILD = builder(CLASSES, axis_name=AXIS)
NETWORK = Network.abstract(BUILD)
OPTIMIZER = optimizer.make_optimizer(CONFIG.optimizer, STEPS, architecture=NETWORK.architecture)
TASK = Classification(tuple("abcde"))
AUGMENT, PREPROCESS = TASK.augment(CONFIG.data, CONFIG.data.size), TASK.preprocess(CONFIG.data, CONFIG.data.size)


@functools.cache
def weights():
    return jax.device_get(initial_arrays(BUILD, 0))


def split_of(count, size=32):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, CLASSES, count).astype(np.int32)
    # The brightness depends on the class, so that there is something to learn.
    noise = generator.integers(0, 100, (count, size, size, 3))
    return ArraySplit.of_images((noise + 30 * labels[:, None, None, None]).astype(np.uint8), labels)


def streamed(split):
    return StreamedSplit.of_images(lambda row: split.images[row], np.arange(len(split)), split.labels)


@functools.cache
def programs(count):
    """Returns `count` devices, and a function that compiles the training program for a loader, once per kind."""
    devices, compiled = Devices(jax.devices()[:count]), {}
    program = make_train_steps(make_train_step(NETWORK, TASK, OPTIMIZER, AXIS), AUGMENT, AXIS, count)

    def of(loader):
        if loader.placement not in compiled:
            compiled[loader.placement] = loader.compile(program, chunk_at=1, arguments=3, donate=(0,))
        return compiled[loader.placement]

    return devices, of


def run_epoch(count, split, steps_per_call, placement="auto"):
    """Trains an epoch; returns the losses, the counts of correct predictions, and the state."""
    devices, program_of = programs(count)
    loader = Loader(split, devices, placement)
    state = devices.replicate(TrainState.create(*weights(), OPTIMIZER))
    key = devices.replicate(jax.random.key(0))
    order = epoch_order(0, 0, split.labels, BATCH)
    results = []
    for call in loader.calls(order, steps_per_call=steps_per_call):
        state, metrics = program_of(loader)(state, call.chunk, key)
        results.append([np.asarray(values)[call.rows] for values in (metrics.loss, metrics.sums["correct"])])
    losses, correct = (np.concatenate(parts) for parts in zip(*results, strict=True))
    return losses, correct, jax.device_get(state)


def steady(steps):
    steps_per_call = StepsPerCall()
    steps_per_call.steps = steps
    return steps_per_call


@functools.cache
def one_device():
    return run_epoch(1, split_of(STEPS * BATCH + 3), steady(STEPS))


def test_eight_devices_take_the_same_steps_as_one():
    """In float64, because correct float32 programs diverge by a factor of ten per step from random weights (ReLU)."""
    split, narrow = split_of(STEPS * BATCH), weights()
    results = {}
    with jax.enable_x64():
        network = Network.abstract(builder(CLASSES, axis_name=AXIS, dtype=jnp.float64))
        images = np.asarray(data.make_preprocess(CONFIG.data)(jnp.asarray(split.images)), np.float64)
        wide = [{key: leaf.astype(np.float64) for key, leaf in part.items()} for part in narrow]
        for count in (1, 8):
            devices = Devices(jax.devices()[:count])
            step = devices.compile(make_train_step(network, TASK, OPTIMIZER, AXIS), sharded=(False, True))
            state, losses = devices.replicate(TrainState.create(*wide, OPTIMIZER)), []
            for row in range(STEPS):
                batch = slice(row * BATCH, (row + 1) * BATCH)
                whole = {"image": images[batch], "label": split.labels[batch].astype(np.int64)}
                sharded = {name: devices.shard(column[None])[:, 0] for name, column in whole.items()}
                state, metrics = step(state, sharded)
                losses.append(float(metrics.loss))
            results[count] = losses, jax.device_get(state)
    (one, one_state), (eight, eight_state) = results[1], results[8]
    assert eight[-1] < eight[0], "the loss decreases, so the steps are not trivial"
    np.testing.assert_allclose(eight, one, rtol=1e-9)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9), eight_state, one_state)


@pytest.mark.long
def test_eight_devices_see_the_same_images_as_one():
    """Compares order, augmentation and counts of the whole program in float32, as far as rounding allows."""
    losses, correct, state = run_epoch(8, split_of(STEPS * BATCH + 3), steady(STEPS))
    one_losses, one_correct, one_state = one_device()
    assert state.step == one_state.step == STEPS
    np.testing.assert_allclose(losses[:4], one_losses[:4], atol=1e-5)
    np.testing.assert_allclose(losses, one_losses, atol=1e-2)
    assert np.abs(correct - one_correct).max() <= 1


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_the_steps_per_call_do_not_change_a_bit(steps):
    result, wanted = run_epoch(1, split_of(STEPS * BATCH + 3), steady(steps)), one_device()
    jax.tree.map(np.testing.assert_array_equal, result, wanted)


@pytest.mark.parametrize("count", [1, 8])
def test_an_epoch_in_memory_is_one_call_without_a_transfer(count):
    devices, program_of = programs(count)
    loader = Loader(split_of(STEPS * BATCH + 3), devices)
    state = devices.replicate(TrainState.create(*weights(), OPTIMIZER))
    key = devices.replicate(jax.random.key(0))
    calls = list(loader.calls(epoch_order(0, 0, loader.split.labels, BATCH), steps_per_call=steady(STEPS)))
    assert [call.steps for call in calls] == [STEPS]
    program = program_of(loader)
    with jax.transfer_guard("disallow_explicit"):
        state, metrics = program(state, calls[0].chunk, key)
        jax.block_until_ready((state, metrics))
    assert np.isfinite(metrics.loss).all()


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 8])
def test_streamed_images_train_like_those_in_memory(count):
    split = split_of(STEPS * BATCH + 3)
    assert STEPS % STREAMED_STEPS, "the last chunk is partial"
    losses, correct, state = run_epoch(count, streamed(split), steady(1))
    wanted_losses, wanted_correct, wanted = run_epoch(count, split, steady(STEPS))
    np.testing.assert_array_equal(losses, wanted_losses)
    np.testing.assert_array_equal(correct, wanted_correct)
    jax.tree.map(np.testing.assert_array_equal, state, wanted)


@pytest.mark.long
@pytest.mark.parametrize("kind", [lambda split: split, streamed])
def test_shares_of_the_images_train_like_all_of_them(kind):
    split = split_of(STEPS * BATCH + 3)
    losses, correct, state = run_epoch(8, kind(split), steady(2), "sharded")
    wanted_losses, wanted_correct, wanted = run_epoch(8, split, steady(STEPS), "replicated")
    np.testing.assert_array_equal(losses, wanted_losses)
    np.testing.assert_array_equal(correct, wanted_correct)
    jax.tree.map(np.testing.assert_array_equal, state, wanted)


def test_every_device_holds_its_share():
    devices, split = Devices(jax.devices()), split_of(63, size=8)
    loader = Loader(split, devices, "sharded")
    order = np.random.default_rng(0).integers(0, len(split), (5, 16)).astype(np.int32)
    steps_per_call = StepsPerCall()
    steps_per_call.steps = 2
    calls = list(loader.calls(order, first=1, steps_per_call=steps_per_call))
    assert [(call.rows.start, call.rows.stop) for call in calls] == [(1, 3), (3, 5)]
    chunk = calls[0].chunk
    images = chunk.data["image"].values
    assert {shard.data.shape for shard in images.addressable_shards} == {(1, 5 * 2, 8 * 8 * 3)}
    by_device = order.reshape(5, 8, 2).swapaxes(0, 1).reshape(8, 10)
    np.testing.assert_array_equal(images, split.images[by_device].reshape(8, 10, -1))
    np.testing.assert_array_equal(chunk.data["label"].values, split.labels[by_device])
    assert loader.resident_bytes == 2 * 8 * (8 * 8 * 3 + 4), "the share, and the examples of an epoch"


@pytest.mark.parametrize(
    ("free", "placement"), [(4.1, "replicated"), (3.9, "sharded"), (2.1, "sharded"), (1.9, "streamed")]
)
def test_where_the_images_fit(free, placement, monkeypatch):
    devices, split = Devices(jax.devices()), split_of(64)
    monkeypatch.setattr(Devices, "free_bytes", lambda self: int(free * split.nbytes))
    assert Loader(split, devices).placement == placement
    assert Loader(streamed(split), devices).placement == "streamed"
    one = Devices(jax.devices()[:1])
    assert Loader(split, one).placement == ("replicated" if free > 4 else "streamed")
    assert Loader(split, one, "sharded").placement == "replicated"


def test_a_placement_that_does_not_fit_is_refused(monkeypatch):
    split = split_of(64)
    monkeypatch.setattr(Devices, "free_bytes", lambda self: split.nbytes // 4)
    wanted = "data.placement=sharded: 64 examples need .* of each device, which has .* free; use data.placement=auto"
    with pytest.raises(UserError, match=wanted):
        Loader(split, Devices(jax.devices()), "sharded")


def test_batch_sizes_that_do_not_divide_are_refused():
    devices = Devices(jax.devices()[:8])
    devices.check_batch(64)
    with pytest.raises(
        UserError, match="batch_size=100 does not divide evenly over 8 devices; use --config.batch_size="
    ):
        devices.check_batch(100)
    with pytest.raises(UserError, match="use --config.batch_size=8$"):
        devices.check_batch(3)


def test_the_steps_per_call_grow_at_most_fourfold_and_are_at_least_one(monkeypatch):
    clock = iter(np.cumsum([0, 0.01, 0, 0.01, 0, 100, 0, 100]))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    steps_per_call, seen = StepsPerCall(seconds=1.0), []
    for _ in range(4):
        with steps_per_call.timing(steps_per_call.steps):
            pass
        seen.append(steps_per_call.steps)
    assert seen == [4, 16, 1, 1]


@functools.cache
def evaluator(count):
    devices = Devices(jax.devices()[:count])
    return devices, Evaluator(NETWORK, TASK, [PREPROCESS], BATCH)


def evaluate(count, split):
    devices, evaluate = evaluator(count)
    return evaluate(*map(devices.replicate, weights()), Loader(split, devices))


@functools.cache
def some_logits():
    """Returns the logits of all 33 images at once."""
    images = data.make_preprocess(CONFIG.data)(jnp.asarray(split_of(33).images))
    logits, _ = jax.jit(functools.partial(NETWORK.apply, train=False))(*weights(), images)
    return torch.tensor(logits.tolist())


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("n", [1, 7, 8, 9, 31, 32, 33])
def test_every_image_is_evaluated_once(count, n):
    split = split_of(33).take(np.arange(n))
    sums = evaluate(count, split)
    assert sums.total == n == sums.confusion.sum() == sums.calibration[0].sum()
    logits, labels = some_logits()[:n], torch.tensor(split.labels.tolist())
    metrics = summarize(sums)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item(), abs=1e-12)
    assert metrics["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_evaluation_does_not_depend_on_the_order_of_the_images():
    split = split_of(50)
    shuffled = split.take(np.random.default_rng(0).permutation(50))
    one, other = evaluate(8, split), evaluate(8, shuffled)
    for name in ("total", "correct", "top5", "confusion"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-6)


def test_evaluation_does_not_depend_on_the_steps_per_call(monkeypatch):
    """The steps per call depend on timing; otherwise a resumed run would differ in the last digits."""
    devices, evaluate = evaluator(1)
    arguments = *map(devices.replicate, weights()), Loader(split_of(20 * BATCH + 5), devices)
    results = []
    for seconds in (0, 1e9):
        monkeypatch.setattr(evaluate, "_steps_per_call", StepsPerCall(seconds))
        chunks = []
        results.append(evaluate(*arguments, lambda done, steps, chunks=chunks: chunks.append(done)))
        assert len(chunks) == (21 if seconds == 0 else 3)
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert results[0].loss.dtype == results[0].calibration.dtype == np.float64


def test_a_streamed_evaluation_equals_one_in_memory():
    split = split_of(STREAMED_STEPS * BATCH + 9)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6), evaluate(8, streamed(split)), evaluate(8, split)
    )


def test_evaluation_does_not_change_the_state():
    devices, evaluate = evaluator(8)
    params, batch_stats = map(devices.replicate, weights())
    evaluate(params, batch_stats, Loader(split_of(20), devices))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get((params, batch_stats)), weights())


def sums_of(logits, labels, mask=None) -> EvalSums:
    mask = np.ones(len(labels), bool) if mask is None else mask
    return jax.device_get(jax.jit(eval_sums)(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask)))


def test_sums_of_random_logits_match_torch():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(300, 12)).astype(np.float32)
    labels, mask = generator.integers(0, 12, 300).astype(np.int32), generator.random(300) < 0.7
    sums = sums_of(logits, labels, mask)
    kept, truth = torch.tensor(logits[mask].tolist()), torch.tensor(labels[mask].tolist())
    top5 = (kept.topk(5).indices == truth[:, None]).any(1)
    confidence, prediction = (values.numpy() for values in kept.softmax(1).max(1))
    assert sums.total == mask.sum()
    hit = prediction == truth.numpy()
    assert sums.correct == hit.sum()
    assert sums.top5 == int(top5.sum())
    assert sums.loss == pytest.approx(torch.nn.functional.cross_entropy(kept, truth, reduction="sum").item(), rel=1e-5)
    confusion = np.zeros((12, 12), int)
    np.add.at(confusion, (truth.numpy(), prediction), 1)
    np.testing.assert_array_equal(sums.confusion, confusion)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    for bin_ in range(CALIBRATION_BINS):
        inside = bins == bin_
        wanted = inside.sum(), confidence[inside].sum(), hit[inside].sum()
        np.testing.assert_allclose(sums.calibration[:, bin_], wanted, rtol=1e-5)


def test_nan_in_the_padding_does_not_leak():
    logits = np.zeros((4, 3), np.float32)
    logits[2:] = np.nan
    sums = sums_of(logits, np.zeros(4, np.int32), np.array([True, True, False, False]))
    assert (sums.total, sums.correct, sums.top5) == (2, 2, 2)
    assert sums.loss == pytest.approx(2 * np.log(3))
    assert sums.calibration.sum() == pytest.approx(2 + 2 / 3 + 2)


def test_nan_of_a_real_image_is_not_hidden():
    logits = np.zeros((2, 8), np.float32)
    logits[1] = np.nan
    sums = sums_of(logits, np.array([0, 7], np.int32))
    assert np.isnan(sums.loss)
    assert sums.top5 == 1


def test_equal_logits_count_as_five_guesses_at_most():
    """With equal logits the first five classes count as correct, at most as with torch's topk."""
    sums = sums_of(np.zeros((10, 10), np.float32), np.arange(10, dtype=np.int32))
    assert (sums.correct, sums.top5) == (1, 5)


@pytest.mark.parametrize("classes", [2, 4])
def test_fewer_than_five_classes(classes):
    labels = np.arange(classes, dtype=np.int32)
    sums = sums_of(np.random.default_rng(0).normal(size=(classes, classes)).astype(np.float32), labels)
    assert sums.top5 == classes
