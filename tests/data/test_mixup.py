"""Tests label smoothing, mixup and CutMix against torch and on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sft_jax.data.mixup import Mixture, mix
from sft_jax.runtime.devices import AXIS, Devices
from sft_jax.tasks.classification import Classification
from sft_jax.tasks.losses import cross_entropy

LABELS = np.array([0, 2, 1, 1, 0, 2, 2, 0], np.int32)
LOGITS = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_matches_torch(smoothing):
    theirs = torch.nn.functional.cross_entropy(
        torch.from_numpy(LOGITS), torch.from_numpy(LABELS).long(), label_smoothing=smoothing, reduction="none"
    )
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS, smoothing), theirs, rtol=1e-5)


def test_the_loss_of_a_mixture_matches_torch_with_soft_labels():
    task = Classification(tuple("abc"), label_smoothing=0.1)
    own, other = (task.loss(jnp.asarray(LOGITS), {"label": jnp.asarray(labels)}) for labels in (LABELS, LABELS[::-1]))
    soft = 0.3 * np.eye(3)[LABELS] + 0.7 * np.eye(3)[LABELS[::-1]]
    theirs = torch.nn.functional.cross_entropy(
        torch.from_numpy(LOGITS), torch.from_numpy(soft).float(), label_smoothing=0.1, reduction="none"
    )
    np.testing.assert_allclose(0.3 * own + 0.7 * other, theirs, rtol=1e-5)


def test_the_main_targets_have_the_larger_weight():
    batch = {"image": jnp.zeros((8, 1, 1, 3)), "label": jnp.asarray(LABELS)}
    partners = {"label": jnp.asarray(LABELS[::-1])}
    for lam, wanted in ((0.3, LABELS[::-1]), (0.7, LABELS)):
        np.testing.assert_array_equal(Mixture(batch, partners, jnp.float32(lam)).main_targets()["label"], wanted)


def images(count=8, size=16):
    """Returns images that are filled with their own index."""
    return jnp.broadcast_to(jnp.arange(count, dtype=jnp.float32)[:, None, None, None], (count, size, size, 3))


def mixed(seed, **settings):
    batch = {"image": images(), "label": jnp.asarray(LABELS)}
    return mix(batch, jax.random.key(seed), targets=("label",), **{"mixup": 0.0, "cutmix": 0.0} | settings)


def test_mixup_blends_with_the_batch_in_reverse():
    lams = []
    for seed in range(20):
        mixture = mixed(seed, mixup=0.4)
        own = jnp.arange(8.0)[:, None, None, None]
        wanted = jnp.broadcast_to(mixture.lam * own + (1 - mixture.lam) * own[::-1], (8, 16, 16, 3))
        np.testing.assert_allclose(mixture.batch["image"], wanted, rtol=1e-5)
        np.testing.assert_array_equal(mixture.partners["label"], LABELS[::-1])
        lams.append(float(mixture.lam))
    assert min(lams) < 0.3
    assert max(lams) > 0.7


def test_cutmix_inserts_a_rectangle_and_weights_by_its_area():
    areas = []
    for seed in range(40):
        mixture = jax.device_get(mixed(seed, cutmix=1.0))
        foreign = mixture.batch["image"][0, :, :, 0] == 7
        assert ((mixture.batch["image"][0, :, :, 0] == 0) | foreign).all()
        rows, columns = np.flatnonzero(foreign.any(1)), np.flatnonzero(foreign.any(0))
        assert foreign.sum() == len(rows) * len(columns), "a rectangle"
        assert (np.diff(rows) == 1).all()
        assert (np.diff(columns) == 1).all()
        np.testing.assert_allclose(mixture.lam, 1 - foreign.mean(), rtol=1e-6)
        areas.append(foreign.mean())
    assert 0.15 < np.mean(areas) < 0.5
    assert np.std(areas) > 0.1


def test_with_both_settings_one_is_drawn():
    kinds = {len(np.unique(np.asarray(mixed(seed, mixup=1.0, cutmix=1.0).batch["image"][0]))) for seed in range(20)}
    assert kinds == {1, 2}, "a blend has one colour, a cut two"


def test_eight_devices_mix_like_one():
    devices = Devices()

    def program(batch, key):
        return mix(batch, key, targets=("label",), mixup=0.5, cutmix=0.5, axis_name=AXIS)

    compiled = devices.compile(program, sharded=(True, False), gather=False)
    for seed in range(6):
        key = jax.random.key(seed)
        local_batches = {"image": images().reshape(8, 1, 16, 16, 3), "label": LABELS.reshape(8, 1)}
        mixture = compiled(local_batches, devices.replicate(key))
        whole = {"image": images(), "label": jnp.asarray(LABELS)}
        wanted = mix(whole, key, targets=("label",), mixup=0.5, cutmix=0.5)
        np.testing.assert_allclose(mixture.batch["image"][:, 0], wanted.batch["image"], rtol=1e-6)
        np.testing.assert_array_equal(mixture.partners["label"][:, 0], wanted.partners["label"])
        np.testing.assert_allclose(mixture.lam, jnp.broadcast_to(wanted.lam, 8), rtol=1e-6)
