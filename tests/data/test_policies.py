"""Compares TrivialAugmentWide and RandAugment with torchvision's, operation by operation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torchvision.transforms import autoaugment
from torchvision.transforms.functional import InterpolationMode

from sft_jax.data import policies

NAMES = (  # noqa: SIM905  # one line of a list of them is too long
    "Identity ShearX ShearY TranslateX TranslateY Rotate Brightness Color Contrast Sharpness Posterize Solarize "
    "AutoContrast Equalize"
).split()
BLENDS = {"Brightness", "Color", "Contrast", "Sharpness"}


@functools.cache
def smooth_image(size=24):
    """Returns a smooth image, in which neighbouring pixels are close, with some noise."""
    y, x = np.mgrid[0:size, 0:size] / size
    waves = np.stack([np.sin(5 * x + 2 * y), np.cos(4 * y), x * y], -1)
    noise = np.random.default_rng(0).normal(0, 4, waves.shape)
    return np.clip(40 + 150 * (waves - waves.min()) / np.ptp(waves) + noise, 0, 255).astype(np.uint8)


def theirs(name, magnitude):
    image = torch.from_numpy(smooth_image()).permute(2, 0, 1)
    result = autoaugment._apply_op(image, name, magnitude, InterpolationMode.NEAREST, fill=None)
    return result.permute(1, 2, 0).numpy()


@jax.jit
def ours(operation, amount, bits, threshold, sign):
    magnitudes = dict.fromkeys(("shear", "translate", "rotate", "blend"), amount)
    return policies.apply(jnp.asarray(smooth_image(), jnp.float32), operation, magnitudes, bits, threshold, sign)


@pytest.mark.parametrize("name", NAMES)
def test_each_operation_matches_torchvision(name):
    space = autoaugment.TrivialAugmentWide()._augmentation_space(policies.BINS)
    magnitudes, signed = space[name]
    for level in (0, 7, 15, 22, 30):
        magnitude = float(magnitudes[level]) if magnitudes.ndim else 0.0
        for sign in (1.0, -1.0) if signed else (1.0,):
            bits, threshold = (magnitude, 0.0) if name == "Posterize" else (8.0, magnitude)
            result = np.asarray(ours(NAMES.index(name), magnitude, bits, threshold, sign))
            wanted = theirs(name, sign * magnitude)
            assert result.min() >= 0
            assert result.max() <= 255
            np.testing.assert_array_equal(result, np.round(result), err_msg="integers")
            if name in BLENDS | {"AutoContrast"}:
                # The order of float32 operations differs: a value near an integer may be truncated to the one below.
                assert np.abs(result - wanted).max() <= 1
                assert (result != wanted).mean() < (0.25 if name == "Sharpness" else 0.01)
            elif name in ("ShearX", "ShearY", "Rotate"):
                # A position exactly between two pixels may round to either.
                assert (result != wanted).mean() < 0.02, (level, sign)
            else:
                np.testing.assert_array_equal(result, wanted)


@pytest.mark.long
def test_trivial_augment_draws_all_operations_and_magnitudes():
    keys = jax.random.split(jax.random.key(0), 500)
    images = np.asarray(
        jax.vmap(lambda key: policies.trivial_augment(jnp.asarray(smooth_image(), jnp.float32), key))(keys)
    )
    same = (images == smooth_image()).all((1, 2, 3)).mean()
    assert 1 / 14 < same < 0.25, "the identity, and operations of magnitude 0"
    assert len(np.unique(images.reshape(500, -1), axis=0)) > 200


@pytest.mark.long
def test_rand_augment_applies_the_given_operations_at_one_magnitude():
    image = jnp.asarray(smooth_image(), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 300)
    one, two = (
        np.asarray(jax.vmap(functools.partial(policies.rand_augment, image, operations=count, magnitude=9))(keys))
        for count in (1, 2)
    )
    assert len(np.unique(one.reshape(300, -1), axis=0)) <= 14 + 9, "14 operations, 9 of them of either sign"
    assert len(np.unique(two.reshape(300, -1), axis=0)) > 100
    none = np.asarray(jax.vmap(functools.partial(policies.rand_augment, image, operations=1, magnitude=0))(keys))
    assert (none == smooth_image()).all((1, 2, 3)).mean() > 0.6


@pytest.mark.long
def test_translations_of_rand_augment_match_torchvision():
    space = autoaugment.RandAugment()._augmentation_space(31, (24, 24))
    image = jnp.asarray(smooth_image(), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 300)
    images = np.asarray(jax.vmap(functools.partial(policies.rand_augment, image, operations=1, magnitude=20))(keys))
    for name in ("TranslateX", "TranslateY", "Posterize", "Solarize"):
        wanted = theirs(name, float(space[name][0][20]))
        assert (images == wanted).all((1, 2, 3)).any(), name
