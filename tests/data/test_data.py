"""Tests of sampling order, augmentation, digits and images per class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_jax import data
from sft_jax.config import complete
from sft_jax.data import pixels as pixels_module
from sft_jax.data.augment import Augmentation
from sft_jax.data.dataset import ArraySplit
from sft_jax.data.sampling import epoch_order, eval_order, per_class, stratified
from sft_jax.data.sources.digits import load_digits
from sft_jax.errors import UserError

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def images(count, height=32, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_sees_images_at_most_once_and_leaves_out_less_than_a_batch(n, batch_size, seed, epoch):
    if n < batch_size:
        with pytest.raises(UserError, match=f"only {n} training images; use --config.batch_size={n}"):
            epoch_order(seed, epoch, np.zeros(n, int), batch_size)
        return
    order = epoch_order(seed, epoch, np.zeros(n, int), batch_size)
    assert order.dtype == np.int32
    assert order.shape == (n // batch_size, batch_size)
    rows = order.ravel()
    assert len(set(rows.tolist())) == len(rows)
    assert 0 <= rows.min() <= rows.max() < n


def test_the_order_is_a_function_of_seed_and_epoch():
    labels = np.zeros(1000, int)
    one = epoch_order(3, 7, labels, 10)
    np.testing.assert_array_equal(one, epoch_order(3, 7, labels, 10))
    for seed, epoch in [(3, 8), (4, 7), (7, 3)]:
        assert (one != epoch_order(seed, epoch, labels, 10)).mean() > 0.9
    # Literal values, so that runs of earlier versions resume in the same order.
    np.testing.assert_array_equal(epoch_order(0, 0, labels[:10], 5), [[8, 0, 3, 7, 6], [4, 1, 5, 2, 9]])


@given(st.integers(1, 100), st.integers(1, 40))
def test_evaluation_sees_every_image_once(n, batch_size):
    order, mask = eval_order(n, batch_size)
    assert order.shape == mask.shape
    assert order.shape[1] == batch_size
    np.testing.assert_array_equal(order[mask], np.arange(n))
    assert (~mask).sum() < batch_size


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=80), st.integers(0, 3))
def test_stratified_splits_have_each_row_once_and_each_class_in_proportion(labels, seed):
    labels = np.array(labels)
    splits = stratified(labels, (0.8, 0.1, 0.1), seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(splits)), np.arange(len(labels)))
    for label in np.unique(labels):
        count = (labels == label).sum()
        for rows, fraction in zip(splits, (0.8, 0.1, 0.1), strict=True):
            here = (labels[rows] == label).sum()
            assert abs(here - fraction * count) <= 2
            assert here >= (count >= 3)


def test_per_class_draws_the_same_number_of_each_class():
    labels = np.repeat(np.arange(3), [5, 9, 6])
    rows = per_class(labels, 5, seed=0)
    np.testing.assert_array_equal(labels[rows], np.repeat(np.arange(3), 5))
    assert len(set(rows.tolist())) == 15
    assert (per_class(labels, 5, seed=1) != rows).any()
    with pytest.raises(UserError, match="per_class=6 is too large: a class has only 5 training images"):
        per_class(labels, 6, seed=0)


def test_scaling_is_exact_at_both_ends():
    extremes = np.array([0, 255], np.uint8).reshape(1, 1, 2, 1).repeat(2, 1).repeat(3, 3)
    plain = pixels_module.preprocess(jnp.asarray(extremes), size=2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert plain.dtype == jnp.float32
    np.testing.assert_array_equal(plain, extremes / np.float32(255))
    np.testing.assert_array_equal(np.unique(plain), [0, 1])
    np.testing.assert_array_equal(np.unique(pixels_module.preprocess(jnp.asarray(extremes), size=2, **HALF)), [-1, 1])


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_images_that_may_be_scaled_already_are_refused(dtype):
    with pytest.raises(TypeError, match="images must be uint8 in 0..255, not"):
        pixels_module.preprocess(jnp.zeros((1, 4, 4, 3), dtype), size=4, **HALF)


def test_normalisation_matches_torchvision():
    import torch
    from torchvision.transforms import v2

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = images(3)
    theirs = v2.Normalize(mean, std)(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
    ours = pixels_module.preprocess(jnp.asarray(pixels), size=32, mean=mean, std=std)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), atol=1e-6)


@pytest.mark.parametrize(("side", "size"), [(32, 64), (64, 32), (33, 48)])
def test_resizing_matches_torch(side, size):
    import torch

    pixels = images(2, side, side)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).float(), (size, size), mode="bilinear", antialias=True
    )
    settings = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    ours = pixels_module.preprocess(jnp.asarray(pixels), size=size, **settings)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1) / 255, atol=1e-4)


def plain_augment(pixels, **changes):
    """Augments without normalisation: uint8 in, the same values as floats out."""
    settings = {"size": pixels.shape[1], "mean": (0.0,) * 3, "std": (1 / 255,) * 3, "crop_padding": 4, "flip": True}
    return Augmentation(**settings | changes)


def candidates(image, padding, flip):
    """Returns all possible crops of the padded `image`, with and without flip."""
    size = len(image)
    crops = set()
    for view in (image, image[:, ::-1])[: 2 if flip else 1]:
        padded = np.pad(view, ((padding, padding), (padding, padding), (0, 0)))
        for top in range(2 * padding + 1):
            for left in range(2 * padding + 1):
                crops.add(padded[top : top + size, left : left + size].tobytes())
    return crops


@pytest.mark.parametrize(("padding", "flip"), [(4, True), (2, False), (0, True), (0, False)])
def test_an_augmented_image_is_a_shifted_or_flipped_one(padding, flip):
    pixels = images(200, 8, 8)
    augment = plain_augment(pixels, crop_padding=padding, flip=flip)
    out = np.asarray(jax.jit(augment, static_argnums=3)(jnp.asarray(pixels), jax.random.key(0), 0, 200))
    whole = np.round(out).astype(np.uint8)
    np.testing.assert_allclose(out, whole, atol=1e-4)
    for before, after in zip(pixels, whole, strict=True):
        assert after.tobytes() in candidates(before, padding, flip)


def test_shifts_and_flips_are_uniform():
    # A single bright pixel shows where each image was shifted.
    pixels = np.zeros((4000, 16, 16, 3), np.uint8)
    pixels[:, 8, 5] = 255
    augment = plain_augment(pixels)
    out = np.asarray(augment(jnp.asarray(pixels), jax.random.key(1), 0, 4000))[..., 0]
    _, rows, columns = np.nonzero(out > 1)
    assert len(rows) == 4000
    counts = np.bincount(rows, minlength=16)[4:13]
    assert counts.sum() == 4000, "shifted by up to 4 pixels each way"
    assert abs(counts / 4000 - 1 / 9).max() < 0.025
    assert abs((columns <= 9).mean() - (0.5 + 0.5 * 4 / 9)) < 0.03, "half of them flipped to column 10"


def test_each_image_of_a_batch_is_augmented_independently():
    pixels = np.repeat(images(1, 16, 16), 64, axis=0)
    out = np.asarray(plain_augment(pixels)(jnp.asarray(pixels), jax.random.key(0), 0, 64))
    assert len({image.tobytes() for image in out}) > 40, "162 images are possible"
    again = np.asarray(plain_augment(pixels)(jnp.asarray(pixels), jax.random.key(1), 0, 64))
    assert (out != again).any((1, 2, 3)).mean() > 0.9


@pytest.mark.parametrize("devices", [2, 8])
def test_augmentation_does_not_depend_on_the_number_of_devices(devices):
    pixels = images(16)
    key = jax.random.key(5)
    augment = data.make_augment(complete({"data.size": 32}).data)
    whole = augment(jnp.asarray(pixels), key, 0, 16)
    local_batch = 16 // devices
    parts = [
        augment(jnp.asarray(pixels[first : first + local_batch]), key, first, 16) for first in range(0, 16, local_batch)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_the_augmentation_uses_the_config():
    settings = {"data.size": 16, "data.mean": (0.1, 0.2, 0.3), "data.std": (0.5, 0.6, 0.7)}
    config = complete(settings | {"data.crop_padding": 0, "data.flip": False}).data
    pixels = jnp.asarray(images(2))
    np.testing.assert_array_equal(
        data.make_augment(config)(pixels, jax.random.key(0), 0, 2), data.make_preprocess(config)(pixels)
    )
    assert data.make_preprocess(config)(pixels).shape == (2, 16, 16, 3)


def test_digits_are_split_and_relabelled():
    whole = load_digits("digits")
    assert whole.class_names == tuple("0123456789")
    counts = [len(split) for split in (whole.train, whole.validation, whole.test)]
    assert sum(counts) == 1797
    assert counts[0] == pytest.approx(0.6 * 1797, abs=5)
    assert whole.train.images.shape[1:] == (8, 8, 3)
    assert (whole.train.images.min(), whole.train.images.max()) == (0, 255)
    later = load_digits("digits:5-9")
    assert later.class_names == tuple("56789")
    assert set(later.test.labels) == set(range(5))
    seen = {image.tobytes() for image in later.train.images}
    assert sum(image.tobytes() in seen for image in later.test.images) == 0
    # The test images do not depend on the run's seed.
    np.testing.assert_array_equal(later.test.images, load_digits("digits:5-9").test.images)


@pytest.mark.parametrize("source", ["digits:5", "digits:9-5", "digits:5-5", "digits:a-b", "digits5", "digits:"])
def test_invalid_digits_are_refused(source):
    with pytest.raises(UserError, match="must be digits or a range such as digits:5-9"):
        load_digits(source)


@pytest.mark.parametrize("source", ["tfds", "tfds:", "folder:", "cifar10", ""])
def test_an_unknown_source_is_refused(source):
    config = complete({"data.source": source}).data
    with pytest.raises(
        UserError,
        match="must be one of tfds:NAME, folder:PATH, csv:FILE, hf:PATH, hf://OWNER/NAME, text:PATH, masks:PATH, "
        "voc:PATH, panoptic:PATH, digits, digits:FIRST-LAST",
    ):
        data.load_dataset(config, seed=0)


def test_limits_draw_images_by_seed():
    config = complete({"data.source": "digits"}).data
    one, same, other = (data.load_dataset(config, seed=seed, limit_train=50, limit_eval=20) for seed in (0, 0, 1))
    assert [len(split) for split in (one.train, one.validation, one.test)] == [50, 20, 20]
    assert len(set(one.train.labels)) == 10
    np.testing.assert_array_equal(one.train.images, same.train.images)
    assert (one.train.images != other.train.images).any()
    assert len(data.load_dataset(config, seed=0, limit_train=10**6).train) > 1000


def test_per_class_limits_the_training_images():
    config = complete({"data.source": "digits:5-9", "data.per_class": 10}).data
    np.testing.assert_array_equal(np.bincount(data.load_dataset(config, seed=0).train.labels), 5 * [10])


@pytest.mark.parametrize(
    ("pixels", "labels"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), np.zeros(2, np.int32)),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.int32)),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int32)),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, np.int32)),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int64)),
    ],
)
def test_arrays_of_other_dtypes_and_shapes_are_refused(pixels, labels):
    with pytest.raises(TypeError, match="must be (uint8|int32)"):
        ArraySplit.of_images(pixels, labels)
