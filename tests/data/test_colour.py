"""Compares colour augmentations with torchvision's."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torchvision.transforms import functional as theirs

from sft_jax.data import colour, policies
from sft_jax.data.augment import Augmentation

UNIT = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}


@functools.cache
def pictures(count=2, side=24):
    noise = np.random.default_rng(1).integers(0, 256, (count, side, side, 3), np.uint8)
    noise[0, :4] = 200  # gray
    noise[0, 4:8, :, 1] = noise[0, 4:8, :, 0]  # two equal channels
    return noise


def apply_torch(function, image, *arguments):
    return function(torch.from_numpy(image).permute(2, 0, 1), *arguments).permute(1, 2, 0).numpy()


CHANGES = {
    "brightness": (colour.brightness, theirs.adjust_brightness, (0.0, 0.3, 1.0, 1.7)),
    "contrast": (colour.contrast, theirs.adjust_contrast, (0.0, 0.3, 1.0, 1.7)),
    "saturation": (colour.saturation, theirs.adjust_saturation, (0.0, 0.3, 1.0, 1.7)),
    "hue": (colour.hue, theirs.adjust_hue, (-0.5, -0.1, 0.0, 0.25, 0.4)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_matches_torchvision(name):
    ours, reference, amounts = CHANGES[name]
    for image, amount in itertools.product(pictures(), amounts):
        result = np.asarray(jax.jit(ours)(jnp.asarray(image, jnp.float32), jnp.float32(amount)))
        np.testing.assert_array_equal(result, np.round(result))
        difference = np.abs(result - apply_torch(reference, image, amount))
        # Truncation of values near an integer may go either way.
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.03


def test_gray_matches_torchvision():
    for image in pictures():
        wanted = apply_torch(lambda pixels: theirs.rgb_to_grayscale(pixels, 3), image)
        assert np.abs(np.asarray(colour.gray(jnp.asarray(image, jnp.float32))) - wanted).max() <= 1


@pytest.mark.parametrize("side", [24, 5])
def test_blur_matches_torchvision(side):
    images = pictures(3, side)
    sigmas = np.array([0.1, 0.7, 2.0], np.float32)
    ours = np.asarray(colour.blur(jnp.asarray(images, jnp.float32), jnp.asarray(sigmas)))
    taps = 2 * min(colour.RADIUS, side - 1) + 1
    for result, image, sigma in zip(ours, images, sigmas.tolist(), strict=True):
        wanted = apply_torch(theirs.gaussian_blur, image, [taps, taps], [sigma, sigma])
        assert np.abs(result - wanted).max() <= 1
        assert (result != wanted).mean() < 0.01


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_jitter_applies_its_changes_in_the_given_order(order):
    images, strengths = pictures(), (0.4, 0.4, 0.4, 0.1)
    draws = np.array([[-1, 0.5, 1, 0.3], [0.2, -0.5, 0.0, -1]], np.float32)
    ours = np.asarray(colour.jitter(jnp.asarray(images, jnp.float32), jnp.asarray(draws), jnp.array(order), strengths))
    for result, image, draw in zip(ours, images, draws, strict=True):
        wanted = image
        for number in order:
            amount = strengths[number] * float(draw[number]) + (number != 3)
            wanted = apply_torch(list(CHANGES.values())[number][1], wanted, amount)
        # A difference of one in an early change can grow in the later ones.
        assert np.abs(result - wanted.astype(float)).max() <= 4
        assert np.abs(result - wanted.astype(float)).mean() < 0.2


def test_factors_of_strong_jitter_are_uniform_from_zero():
    images = jnp.full((1000, 2, 2, 3), 50.0)
    draws = jax.random.uniform(jax.random.key(0), (1000, 4), minval=-1, maxval=1)
    out = np.asarray(colour.jitter(images, draws, jnp.arange(4), (2.0, 0, 0, 0)))[:, 0, 0, 0]
    factors = out / 50  # torchvision: uniform from max(0, 1 - 2) to 1 + 2
    assert factors.min() >= 0
    assert factors.max() > 2.9
    assert abs(factors.mean() - 1.5) < 0.1


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ({"vertical_flip": True}, lambda image: [image, image[::-1]]),
        ({"grayscale": 0.5}, lambda image: [image, np.asarray(colour.gray(jnp.asarray(image, jnp.float32)))]),
    ],
)
def test_a_part_changes_about_half_of_the_images(part, changes):
    images = np.repeat(pictures(1), 200, axis=0)
    out = np.round(np.asarray(Augmentation(size=24, **UNIT, **part)(jnp.asarray(images), jax.random.key(0), 0, 200)))
    plain, changed = (np.asarray(view, np.float32) for view in changes(images[0]))
    is_plain = (np.abs(out - plain) <= 1e-3).all((1, 2, 3))
    is_changed = (np.abs(out - changed) <= 1).all((1, 2, 3))
    assert (is_plain | is_changed).all()
    assert 70 < is_changed.sum() < 130


def test_rotation_draws_angles_up_to_the_given_one():
    images = np.repeat(pictures(1), 64, axis=0)
    out = np.asarray(Augmentation(size=24, rotation=20.0, **UNIT)(jnp.asarray(images), jax.random.key(0), 0, 64))
    candidates = {
        policy.tobytes()
        for angle in np.linspace(-20, 20, 2001)
        for policy in [apply_torch(theirs.rotate, images[0], float(angle))]
    }
    found = sum(np.round(image).astype(np.uint8).tobytes() in candidates for image in out)
    assert found >= 60, "all but those between two of the 2,001 angles"
    assert len({image.tobytes() for image in out}) > 30


def test_augmix_is_a_mixture_close_to_the_image():
    smooth = np.broadcast_to(np.linspace(20, 230, 24, dtype=np.float32)[:, None, None], (24, 24, 3)).round()
    keys = jax.random.split(jax.random.key(0), 64)
    out = np.asarray(jax.vmap(lambda key: policies.aug_mix(jnp.asarray(smooth), key))(keys))
    np.testing.assert_array_equal(out, np.round(out))
    assert out.min() >= 0
    assert out.max() <= 255
    assert len({image.tobytes() for image in out}) == 64
    ours = np.abs(out - smooth).mean((1, 2, 3))
    from torchvision.transforms import AugMix

    torch.manual_seed(0)
    image = torch.from_numpy(smooth.astype(np.uint8)).permute(2, 0, 1)
    wanted = [np.abs(AugMix()(image).permute(1, 2, 0).numpy().astype(float) - smooth).mean() for _ in range(200)]
    # The mean change of 64 and 200 draws; its standard error is about an eighth of the deviation.
    assert abs(ours.mean() - np.mean(wanted)) < 0.5 * np.std(wanted)
