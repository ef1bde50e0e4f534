"""Label smoothing, mixup and CutMix: torch's values, and the same on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sft_jax.data.mixup import Mixture, mix
from sft_jax.runtime.devices import AXIS, Devices
from sft_jax.tasks.losses import cross_entropy

LABELS = np.array([0, 2, 1, 1, 0, 2, 2, 0], np.int32)
LOGITS = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_is_torchs(smoothing):
    theirs = torch.nn.functional.cross_entropy(
        torch.from_numpy(LOGITS), torch.from_numpy(LABELS).long(), label_smoothing=smoothing, reduction="none"
    )
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS, smoothing), theirs, rtol=1e-5)


def test_the_loss_of_a_mixture_is_torchs_of_soft_labels():
    mixture = Mixture(jnp.zeros((8, 1, 1, 3)), jnp.asarray(LABELS), jnp.asarray(LABELS[::-1].copy()), jnp.float32(0.3))
    soft = 0.3 * np.eye(3)[LABELS] + 0.7 * np.eye(3)[LABELS[::-1]]
    theirs = torch.nn.functional.cross_entropy(
        torch.from_numpy(LOGITS), torch.from_numpy(soft).float(), label_smoothing=0.1, reduction="none"
    )
    np.testing.assert_allclose(mixture.loss(jnp.asarray(LOGITS), 0.1), theirs, rtol=1e-5)
    np.testing.assert_array_equal(mixture.main_labels(), LABELS[::-1])


def images(count=8, size=16):
    """Returns images that are filled with their own index."""
    return jnp.broadcast_to(jnp.arange(count, dtype=jnp.float32)[:, None, None, None], (count, size, size, 3))


def mixed(seed, **settings):
    return mix(images(), jnp.asarray(LABELS), jax.random.key(seed), **{"mixup": 0.0, "cutmix": 0.0} | settings)


def test_mixup_blends_with_the_batch_in_reverse():
    shares = []
    for seed in range(20):
        found = mixed(seed, mixup=0.4)
        own = jnp.arange(8.0)[:, None, None, None]
        wanted = jnp.broadcast_to(found.share * own + (1 - found.share) * own[::-1], (8, 16, 16, 3))
        np.testing.assert_allclose(found.images, wanted, rtol=1e-5)
        np.testing.assert_array_equal(found.partners, LABELS[::-1])
        shares.append(float(found.share))
    assert min(shares) < 0.3
    assert max(shares) > 0.7


def test_cutmix_puts_in_a_rectangle_and_counts_its_area():
    areas = []
    for seed in range(40):
        found = jax.device_get(mixed(seed, cutmix=1.0))
        foreign = found.images[0, :, :, 0] == 7
        assert ((found.images[0, :, :, 0] == 0) | foreign).all()
        rows, columns = np.flatnonzero(foreign.any(1)), np.flatnonzero(foreign.any(0))
        assert foreign.sum() == len(rows) * len(columns), "a rectangle"
        assert (np.diff(rows) == 1).all()
        assert (np.diff(columns) == 1).all()
        np.testing.assert_allclose(found.share, 1 - foreign.mean(), rtol=1e-6)
        areas.append(foreign.mean())
    assert 0.15 < np.mean(areas) < 0.5
    assert np.std(areas) > 0.1


def test_with_both_one_of_them_is_drawn():
    kinds = {len(np.unique(np.asarray(mixed(seed, mixup=1.0, cutmix=1.0).images[0]))) for seed in range(20)}
    assert kinds == {1, 2}, "a blend has one colour, a cut two"


def test_eight_devices_mix_as_one_does():
    devices = Devices()

    def program(images, labels, key):
        return mix(images, labels, key, mixup=0.5, cutmix=0.5, axis_name=AXIS)

    compiled = devices.compile(program, sharded=(True, True, False), gather=False)
    for seed in range(6):
        key = jax.random.key(seed)
        found = compiled(images().reshape(8, 1, 16, 16, 3), LABELS.reshape(8, 1), devices.replicate(key))
        wanted = mix(images(), jnp.asarray(LABELS), key, mixup=0.5, cutmix=0.5)
        np.testing.assert_allclose(found.images[:, 0], wanted.images, rtol=1e-6)
        np.testing.assert_array_equal(found.partners[:, 0], wanted.partners)
        np.testing.assert_allclose(found.share, jnp.broadcast_to(wanted.share, 8), rtol=1e-6)
