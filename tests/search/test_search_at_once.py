"""Compares trials that train at once with separate runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import TINY, one_device

from sft_jax.config import complete, flatten
from sft_jax.config.traced import TRACEABLE, with_traced
from sft_jax.data import Dataset
from sft_jax.data.dataset import ArraySplit
from sft_jax.models import ARCHITECTURES
from sft_jax.search.at_once import WORTHWHILE, AtOnce, choose
from sft_jax.search.vmapped import VmappedTrials
from sft_jax.training import optimizer


def noise(count, seed=0):
    """Returns images of five classes without equal neighbours, so that maxima do not depend on rounding."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 5
    classes = np.random.default_rng(9).integers(0, 256, (5, 16, 16, 3))
    images = 0.6 * classes[labels] + 0.4 * generator.integers(0, 256, (count, 16, 16, 3))
    return ArraySplit.of_images(images.astype(np.uint8), labels)


def curves(together, configs, dataset):
    """Returns losses and accuracy, [epochs, trials, 3]."""
    return np.array([[row[:3] for row in rows] for rows in together.epochs(configs, dataset, lambda done: None)])


@pytest.mark.long
@pytest.mark.parametrize("batch_norm", [pytest.param("freeze_statistics", marks=pytest.mark.slow), "train"])
def test_eight_trials_at_once_equal_eight_runs(batch_norm):
    """Frozen statistics keep rounding errors small; with batch statistics they grow, so the curves are short."""
    split = noise(192)
    dataset = Dataset(split, noise(61, seed=1), split, tuple("01234"))
    epochs, top = (4, 0.1) if batch_norm == "freeze_statistics" else (1, 0.01)
    values = TINY | {"finetune.batch_norm": batch_norm, "epochs": epochs, "optimizer.schedule": "cosine"}
    spread = {
        "optimizer.learning_rate": np.geomspace(1e-4, top, 8),
        "optimizer.momentum": np.linspace(0.0, 0.9, 8),
        "optimizer.weight_decay": np.geomspace(1e-4, 1e-2, 8),
        "regularization.label_smoothing": np.linspace(0.0, 0.2, 8),
    }
    assert set(spread) == set(TRACEABLE)
    configs = [complete(values | {key: float(row[index]) for key, row in spread.items()}) for index in range(8)]
    together = VmappedTrials(configs[0], TRACEABLE, dataset, one_device())
    results = curves(together, configs, dataset)
    for index, config in enumerate(configs):
        wanted = curves(together, [config], dataset)[:, 0]
        np.testing.assert_allclose(results[:, index, :2], wanted[:, :2], atol=1e-4)
        # Rounding may decide an image whose two highest logits are nearly equal.
        np.testing.assert_allclose(results[:, index, 2], wanted[:, 2], atol=1.01 / 61)
    assert np.ptp(results[-1, :, 0]) > 0.01, "the trials differ"
    assert len(together._compiled) == 2, "one program for all eight, and one for a single trial"


@pytest.mark.slow
def test_trials_at_once_have_phases():
    """With the optional parts of a state: moving averages, and anchors shared by all trials."""
    split = noise(128)
    dataset = Dataset(split, noise(61, seed=1), split, tuple("01234"))
    phases = {"finetune.method": "head_then_full", "finetune.head_epochs": 1, "finetune.batch_norm": "recalibrate"}
    kept = {"regularization.l2_sp": 0.1, "regularization.ema": 0.9}
    configs = [complete(TINY | phases | kept | {"optimizer.learning_rate": rate}) for rate in (0.00001, 0.00005)]
    together = VmappedTrials(configs[0], ["optimizer.learning_rate"], dataset, one_device())
    results = curves(together, configs, dataset)
    assert len(results) == 2
    for index, config in enumerate(configs):
        wanted = curves(together, [config], dataset)[:, 0]
        np.testing.assert_allclose(results[:, index, :2], wanted[:, :2], atol=1e-4)
    assert (np.ptp(results[-1, :, :2], axis=0) > 1e-3).all()


def test_the_settings_of_every_optimizer_can_be_arguments():
    params = {"conv.kernel": jnp.ones((3, 3, 2, 2)), "fc.bias": jnp.ones(2)}
    keys = ("optimizer.learning_rate", "optimizer.weight_decay", "optimizer.momentum")

    def updates(values, config):
        config = with_traced(config, values) if values else config
        chosen = optimizer.make_optimizer(config.optimizer, 5, architecture=ARCHITECTURES["resnet18"])
        return chosen.update(params, chosen.init(params), params)[0]

    for name in ("sgd", "adamw", "muon", "lamb", "lion", "schedule_free_adamw"):
        config = complete({"optimizer.name": name, "optimizer.weight_decay": 0.1, "optimizer.decay": "all"})
        values = {key: jnp.float32(flatten(config)[key]) for key in keys}
        with jax.numpy_dtype_promotion("standard"):  # optax's own schedules
            traced, wanted = jax.jit(functools.partial(updates, config=config))(values), updates(None, config)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), traced, wanted)


@pytest.mark.slow
def test_the_faster_way_is_chosen():
    split = noise(320)
    dataset = Dataset(split, split, split, tuple("01234"))
    config = complete(TINY)
    together = VmappedTrials(config, ["optimizer.learning_rate"], dataset, one_device())
    choice = choose(together, [config] * 2, dataset, asked=None)
    assert choice.count == (2 if choice.together_s <= WORTHWHILE * 2 * choice.alone_s else 1)
    assert f"{1e3 * choice.alone_s:.3g} ms with one, on 1 x cpu" in choice.reason
    assert choose(together, [config] * 2, dataset, asked=2).count == 2
    # 40 steps of each of four trials took 50 ms instead of 100 ms; the other 22 s are unaffected.
    assert AtOnce(4, "", 4, alone_s=0.1, together_s=0.2).one_by_one(30.0, 160) == pytest.approx(38.0)
    assert AtOnce(1, "", 4, alone_s=0.1, together_s=0.5).one_by_one(30.0, 160) is None
