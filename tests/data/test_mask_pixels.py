"""Tests that masks follow their images on the device: every crop, flip, shift and rotation, for any number of parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sft_jax.config import complete
from sft_jax.data import masks
from sft_jax.data.augment import make_augment
from sft_jax.data.pixels import make_preprocess

COUNT, SIDE = 12, 24


def pictures():
    """Returns pictures and masks of the same values: classes 0 to 2 in blocks, 20 to 220 in a picture."""
    values = np.random.default_rng(0).integers(0, 3, (COUNT, 4, 4)).astype(np.uint8)
    truth = np.kron(values, np.ones((1, SIDE // 4, SIDE // 4), np.uint8))
    return jnp.asarray(np.repeat((20 + 100 * truth)[..., None], 3, -1)), jnp.asarray(truth)


def settings(**changes):
    values = {"data.size": SIDE, "data.mean": (0.0,) * 3, "data.std": (1 / 255,) * 3, "data.flip": False}
    return complete(values | {"data.crop_padding": 0} | {f"data.{key}": value for key, value in changes.items()}).data


def agree(seen, ours):
    """Returns where a mask says what is to be seen; black, outside of the picture, is void."""
    return np.abs(np.asarray(seen)[..., 0] - np.where(ours == 255, 0, 20 + 100 * ours.astype(float))) < 1


CASES = {
    "nothing": ({}, 1.0),
    "flip": ({"flip": True}, 1.0),
    "both flips and shifts": ({"flip": True, "vertical_flip": True, "crop_padding": 5}, 1.0),
    "rotation": ({"rotation": 40.0}, 1.0),
    "another size": ({"size": 48, "flip": True}, 0.7),
    "half the size": ({"size": 12, "flip": True, "crop_padding": 3}, 0.4),
    "crops": ({"size": 32, "crop_scale": (0.3, 1.0), "flip": True, "vertical_flip": True}, 0.7),
    "colours": ({"flip": True, "crop_padding": 2}, 1.0),
}


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_a_mask_follows_its_image(name):
    changes, least = CASES[name]
    augmentation = make_augment(settings(**changes))
    images, truth = pictures()
    ours = np.asarray(masks.augmented(augmentation, truth, jax.random.key(1), 0, COUNT))
    seen = augmentation(images, jax.random.key(1), 0, COUNT)
    assert ours.dtype == np.uint8
    assert ours.shape == seen.shape[:3]
    # Where an image is resized, its pixels at the borders of classes are mixed.
    assert agree(seen, ours).mean((1, 2)).min() >= least
    assert (ours == 255).any() == any(changes.get(key) for key in ("crop_padding", "rotation"))
    if changes:
        assert not np.array_equal(ours, truth)


@pytest.mark.long
def test_draws_do_not_depend_on_the_number_of_devices():
    augmentation = make_augment(settings(flip=True, crop_scale=(0.2, 1.0), rotation=20.0, size=16))
    _, truth = pictures()
    whole = masks.augmented(augmentation, truth, jax.random.key(2), 0, COUNT)
    parts = [
        masks.augmented(augmentation, truth[first : first + 4], jax.random.key(2), first, COUNT)
        for first in range(0, COUNT, 4)
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


@pytest.mark.long
def test_the_colours_of_an_image_do_not_change_its_mask():
    images, truth = pictures()
    plain, coloured = (
        make_augment(settings(flip=True, crop_padding=2, **more))
        for more in ({}, {"color_jitter": (0.4,), "blur": 1.0})
    )
    one, other = (masks.augmented(each, truth, jax.random.key(3), 0, COUNT) for each in (plain, coloured))
    np.testing.assert_array_equal(one, other)
    assert not np.allclose(plain(images, jax.random.key(3), 0, COUNT), coloured(images, jax.random.key(3), 0, COUNT))


@pytest.mark.parametrize("size", [7, 24, 50])
def test_resizing_is_torchs_nearest_exact(size):
    _, truth = pictures()
    wanted = torch.nn.functional.interpolate(torch.tensor(np.asarray(truth))[:, None], size, mode="nearest-exact")
    np.testing.assert_array_equal(masks.resized(truth, size), wanted[:, 0].numpy())


def test_evaluation_crops_the_centre_as_of_the_image():
    config = settings(size=12, crop_pct=0.5)
    images, truth = pictures()
    ours = np.asarray(masks.make_preprocess(config.crop_pct, 12)(truth))
    np.testing.assert_array_equal(ours, truth[:, 6:18, 6:18])
    assert agree(make_preprocess(config)(images), ours).all()
