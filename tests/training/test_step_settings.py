"""Tests each option of the training step against its definition, on one and eight devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_runs import builder

from sft_jax.models import Network, initial_arrays
from sft_jax.models.stochastic_depth import skip_factor
from sft_jax.runtime.devices import AXIS, Devices
from sft_jax.tasks.classification import Classification
from sft_jax.tasks.losses import cross_entropy
from sft_jax.training.state import TrainState
from sft_jax.training.step import StepSettings, make_train_step

CLASSES, BATCH, RATE = 5, 16, 0.05
OPTIMIZER = optax.sgd(RATE, momentum=0.9)


BUILD = builder(CLASSES)
NETWORK = Network.abstract(BUILD)
TASK = Classification(tuple("abcde"))
SMOOTH = Classification(tuple("abcde"), label_smoothing=0.3)
HEAD = frozenset({"fc.kernel", "fc.bias"})
PLAIN = StepSettings()


@functools.cache
def weights():
    return initial_arrays(BUILD, 0)


@functools.cache
def batch():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, CLASSES, BATCH).astype(np.int32)
    images = generator.normal(size=(BATCH, 32, 32, 3)) + labels[:, None, None, None]
    return {"image": jnp.asarray(images, jnp.float32), "label": labels}


@functools.cache
def compiled(settings, network=NETWORK, task=TASK):
    return jax.jit(make_train_step(network, task, OPTIMIZER, settings=settings))


def step(settings=PLAIN, steps=1, network=NETWORK, key=None, task=TASK, **creation):
    trained = settings.trained
    state = TrainState.create(*weights(), OPTIMIZER, trained=trained, **creation)
    losses = []
    for _ in range(steps):
        state, metrics = compiled(settings, network, task)(state, batch(), key)
        losses.append(float(metrics.loss))
    return state, losses


@functools.partial(jax.jit, static_argnames="train")
@jax.grad
def gradients_on(params, batch_stats, images, labels, train):
    return cross_entropy(NETWORK.apply(params, batch_stats, images, train=train)[0], labels).mean()


def gradients(params, *, train=True):
    return gradients_on(params, weights()[1], batch()["image"], batch()["label"], train=train)


def norm(arrays):
    return np.sqrt(sum(np.square(array).sum() for array in map(np.asarray, arrays.values())))


def assert_close(actual, wanted, tolerance=1e-5):
    for key in wanted:
        scale = np.abs(wanted[key]).max() + 1e-12
        assert np.abs(np.asarray(actual[key]) - np.asarray(wanted[key])).max() <= tolerance * scale, key


def test_frozen_parameters_cost_no_gradient_no_memory_and_no_update():
    plain, head = PLAIN, StepSettings(trained=HEAD, batch_statistics=False)
    after, _ = step(head, steps=3)
    for key, leaf in weights()[0].items():
        assert (np.asarray(after.params[key]) != np.asarray(leaf)).any() == (key in HEAD), key
    assert_close(after.batch_stats, weights()[1], 0)
    sizes, costs = {}, {}
    for settings in (plain, head):
        state = TrainState.create(*weights(), OPTIMIZER, trained=settings.trained)
        sizes[settings] = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
        costs[settings] = compiled(settings).lower(state, batch(), None).compile().cost_analysis()
    assert sizes[head] == 128 * CLASSES + CLASSES < sizes[plain] / 300
    assert costs[head]["flops"] < 0.45 * costs[plain]["flops"], "a forward pass is a third of a step"
    assert costs[head]["bytes accessed"] < 0.6 * costs[plain]["bytes accessed"]


@pytest.mark.long
def test_frozen_statistics_are_used_and_kept():
    after, losses = step(StepSettings(batch_statistics=False))
    assert_close(after.batch_stats, weights()[1], 0)
    wanted = {
        key: np.asarray(leaf) - RATE * np.asarray(slope)
        for (key, leaf), slope in zip_up(weights()[0], gradients(weights()[0], train=False))
    }
    assert_close(after.params, wanted)
    assert losses != step()[1]


def zip_up(one, two):
    return [((key, one[key]), two[key]) for key in one]


@pytest.mark.long
def test_micro_batches_add_up_to_the_batch():
    """Without batch norm, which uses the statistics of each micro-batch."""
    whole, parts = (step(StepSettings(batch_statistics=False, accumulate=count), steps=2) for count in (1, 4))
    np.testing.assert_allclose(parts[1], whole[1], rtol=1e-5)
    assert_close(parts[0].params, whole[0].params, 1e-4)
    seen, _ = step(StepSettings(accumulate=4))
    assert any((np.asarray(seen.batch_stats[key]) != np.asarray(leaf)).any() for key, leaf in weights()[1].items())


@pytest.mark.long
def test_l2_sp_pulls_towards_the_initial_weights():
    """The penalty is (l2_sp / 2) * |w - w0|^2, whose gradient after one plain step is l2_sp * (w - w0)."""
    anchored = [key for key in weights()[0] if key not in HEAD]
    state, _ = step(anchored=anchored)
    start = {key: np.asarray(leaf) for key, leaf in state.params.items()}
    (plain, _), (pulled, _) = (compiled(StepSettings(l2_sp=pull))(state, batch()) for pull in (0.0, 2.0))
    wanted = {
        key: np.asarray(plain.params[key]) - RATE * 2.0 * (start[key] - np.asarray(weights()[0][key]))
        for key in anchored
    }
    assert_close(pulled.params, wanted)
    assert_close({key: pulled.params[key] for key in HEAD}, {key: plain.params[key] for key in HEAD}, 0)
    far, near = (step(StepSettings(l2_sp=pull), steps=10, anchored=anchored)[0] for pull in (0.0, 5.0))
    distances = [
        norm({key: np.asarray(state.params[key]) - np.asarray(weights()[0][key]) for key in anchored})
        for state in (far, near)
    ]
    assert distances[1] < 0.8 * distances[0]


@pytest.mark.long
def test_sharpness_aware_steps_use_the_gradient_at_the_perturbed_weights():
    rho = 0.05  # a gradient is compared, which jumps where a unit is switched
    params = weights()[0]
    first = gradients(params)
    length = rho / norm(first)
    second = gradients({key: np.asarray(leaf) + length * np.asarray(first[key]) for key, leaf in params.items()})
    after, losses = step(StepSettings(sam_rho=rho))
    wanted = {key: np.asarray(leaf) - RATE * np.asarray(second[key]) for key, leaf in params.items()}
    assert_close(after.params, wanted, 1e-4)
    plain, plain_losses = step()
    bias = "bn1.bias"
    assert np.abs(np.asarray(plain.params[bias]) - wanted[bias]).max() > 0.1 * np.abs(wanted[bias]).max()
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-6)
    assert_close(after.batch_stats, plain.batch_stats, 1e-6)


def test_the_moving_average_warms_up():
    settings = StepSettings(ema=0.25)
    state = TrainState.create(*weights(), OPTIMIZER, ema=True)
    average = np.asarray(state.ema["fc.kernel"])
    for rate in (1 / 10, 2 / 11, 3 / 12, 0.25):
        state, _ = compiled(settings)(state, batch(), None)
        average = rate * average + (1 - rate) * np.asarray(state.params["fc.kernel"])
        np.testing.assert_allclose(state.ema["fc.kernel"], average, rtol=1e-5, atol=1e-7)
    assert state.ema.keys() == state.params.keys() | state.batch_stats.keys()


def test_labels_are_smoothed():
    _, (loss,) = step(task=SMOOTH)
    logits, _ = jax.jit(functools.partial(NETWORK.apply, train=True))(*weights(), batch()["image"])
    assert loss == pytest.approx(float(cross_entropy(logits, batch()["label"], 0.3).mean()), rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixtures_depend_on_the_key(name):
    settings = StepSettings(**{name: 1.0})
    losses = {seed: step(settings, key=jax.random.key(seed))[1][0] for seed in (0, 1)}
    assert losses[0] != losses[1]
    assert losses[0] == step(settings, key=jax.random.key(0))[1][0]
    assert step(settings, key=None)[1] == pytest.approx(step()[1], rel=1e-6), "nothing is random without a key"


@pytest.mark.long
def test_stochastic_depth_skips_blocks_and_keeps_the_mean():
    """Branches are scaled by 0 or 1/survival, so that their mean is the full network up to its nonlinearity."""
    network = Network.abstract(builder(CLASSES, stochastic_depth=0.5))
    images = jnp.broadcast_to(batch()["image"][:1, ::2, ::2], (128, 16, 16, 3))

    @jax.jit
    def features(key):
        *_, (_, last) = network.bind(*weights())._stages(images, train=False, key=key)
        return last.mean((0, 1))

    whole, drawn = (np.asarray(features(key)) for key in (None, jax.random.key(0)))
    kinds = np.unique(drawn.round(3), axis=0)
    assert len(kinds) == 4, "two blocks, each kept or skipped"
    assert np.ptp(whole, axis=0).max() < 1e-4
    survivals = [1 - 0.5 * position / 4 for position in (1, 2, 3, 4)]
    rates = [1 - survival for survival in survivals]
    factors = np.stack(
        [np.asarray(skip_factor(jax.random.key(0), rate, at, 4000, None)) for at, rate in enumerate(rates, start=1)]
    )
    np.testing.assert_allclose((factors > 0).mean(1), survivals, atol=0.03)
    np.testing.assert_allclose(factors.mean(1), 1, atol=0.06)


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [
        StepSettings(mixup=0.5, cutmix=0.5),
        StepSettings(sam_rho=0.05, batch_statistics=False),
        StepSettings(trained=HEAD, batch_statistics=False, ema=0.9),
    ],
    ids=["mixtures", "sharpness", "head"],
)
def test_eight_devices_take_the_same_step(settings):
    results = []
    for count in (1, 8):
        devices = Devices(jax.devices()[:count])
        network = Network.abstract(builder(CLASSES, axis_name=AXIS, stochastic_depth=0.3))
        program = make_train_step(network, SMOOTH, OPTIMIZER, AXIS, settings)
        state = TrainState.create(*weights(), OPTIMIZER, trained=settings.trained, ema=bool(settings.ema))
        state, key = devices.replicate((state, jax.random.key(3)))
        sharded = {name: devices.shard(np.asarray(column)[None])[:, 0] for name, column in batch().items()}
        state, metrics = devices.compile(program, sharded=(False, True, False))(state, sharded, key)
        results.append((jax.device_get(state.params), float(metrics.loss), int(metrics.sums["correct"])))
    (one, one_loss, one_correct), (eight, loss, correct) = results
    assert loss == pytest.approx(one_loss, rel=1e-5)
    assert correct == one_correct
    # In float32, from random weights, a ReLU that flips changes a gradient by about one per cent.
    moved = {key: one[key] - np.asarray(weights()[0][key]) for key in one}
    for key, move in moved.items():
        assert np.abs(eight[key] - one[key]).max() <= 0.05 * np.abs(move).max() + 1e-7, key
