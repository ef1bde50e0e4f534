"""Compares random resized crops and crops for evaluation with torchvision's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from image_folders import fill
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2
from torchvision.transforms import functional as theirs

from sft_jax import data
from sft_jax.config import complete
from sft_jax.data import crops
from sft_jax.data.augment import Augmentation
from sft_jax.data.pixels import preprocess
from sft_jax.data.preprocess import Preprocess
from sft_jax.data.sampling import epoch_order
from sft_jax.errors import UserError
from sft_jax.training.experiment import Experiment

UNIT = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}


@functools.cache
def picture(height=40, width=40):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def chw(image):
    return torch.from_numpy(np.asarray(image)).permute(2, 0, 1)


@pytest.mark.long
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [16, 40, 56])
def test_a_resampled_box_is_torchvisions_resized_crop(interpolation, size):
    boxes = np.array([[0, 0, 40, 40], [3, 7, 20, 11], [30, 0, 10, 40], [39, 39, 1, 1], [5, 5, 16, 16]], np.float32)
    images = jnp.asarray(np.stack([picture()] * len(boxes)))
    ours = np.asarray(crops.resample(images, jnp.asarray(boxes), size, cubic=interpolation == "bicubic"))
    for result, box in zip(ours, boxes.tolist(), strict=True):
        wanted = theirs.resized_crop(
            chw(picture()).float(), *map(int, box), [size, size], InterpolationMode(interpolation), antialias=True
        )
        np.testing.assert_allclose(result, wanted.permute(1, 2, 0).clamp(0, 255), atol=2e-2)


@pytest.mark.long
@pytest.mark.parametrize("cubic", [False, True])
@pytest.mark.parametrize("size", [16, 37, 40, 56])
def test_taps_and_products_give_the_same(cubic, size):
    images = jnp.asarray(np.random.default_rng(1).integers(0, 256, (50, 40, 33, 3), np.uint8))
    boxes = crops.random_boxes(jax.random.key(2), 50, (40, 33), (0.01, 1.0), (0.3, 3.0))
    flips = jax.random.bernoulli(jax.random.key(3), 0.5, (50, 2))
    taps, products = (way(images, boxes, flips, size=size, cubic=cubic) for way in (crops._by_taps, crops._by_products))
    np.testing.assert_allclose(taps, products, atol=1e-3)
    turned = jnp.where(flips[:, :1, None, None], images[:, ::-1], images)
    turned = jnp.where(flips[:, 1:, None, None], turned[:, :, ::-1], turned)
    np.testing.assert_array_equal(
        crops.resample(images, boxes, size, cubic=cubic, flips=flips), crops.resample(turned, boxes, size, cubic=cubic)
    )


@pytest.mark.parametrize(("scale", "ratio"), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.9, 1.0), (0.5, 2.0))])
def test_boxes_have_torchvisions_distribution(scale, ratio):
    count = 4000
    ours = np.asarray(crops.random_boxes(jax.random.key(0), count, (64, 48), scale, ratio))
    torch.manual_seed(0)
    image = torch.zeros(3, 64, 48)
    wanted = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)])
    top, left, height, width = ours.T
    assert ours.min() >= 0
    assert (top + height).max() <= 64
    assert (left + width).max() <= 48
    for own, other in zip(ours.T, wanted.T, strict=True):
        # Standard errors of the means and deviations of 4,000 draws are about 1/63 and 1/89 of the deviation.
        assert abs(own.mean() - other.mean()) < 0.1 * other.std() + 1e-9
        assert abs(own.std() - other.std()) < 0.1 * other.std() + 1e-9


def test_a_box_that_cannot_fit_is_the_largest_centred_one():
    boxes = np.asarray(crops.random_boxes(jax.random.key(0), 5, (10, 100), (1.0, 1.0), (0.75, 4 / 3)))
    torch.manual_seed(0)
    wanted = RandomResizedCrop.get_params(torch.zeros(3, 10, 100), [1.0, 1.0], [0.75, 4 / 3])
    assert {tuple(box) for box in boxes.tolist()} == {tuple(map(float, wanted))}


@pytest.mark.long
def test_each_image_has_its_own_box_on_any_number_of_devices():
    augment = Augmentation(size=16, crop_scale=(0.1, 0.8), **UNIT)
    images = jnp.asarray(np.stack([picture()] * 8))
    whole = np.asarray(augment(images, jax.random.key(0), 0, 8))
    assert whole.shape == (8, 16, 16, 3)
    assert len({image.tobytes() for image in whole}) == 8
    parts = [augment(images[first : first + 2], jax.random.key(0), first, 8) for first in range(0, 8, 2)]
    # The rounding of batched products depends on the size of the batch.
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-3)


@pytest.mark.parametrize(("side", "size", "crop_pct"), [(36, 32, 0.875), (40, 32, 0.8), (40, 24, 0.6), (73, 64, 0.875)])
def test_evaluation_sees_torchvisions_centre_crop(side, size, crop_pct):
    image = picture(side, side)
    ours = preprocess(jnp.asarray(image)[None], size=size, crop_pct=crop_pct, **UNIT)[0]
    np.testing.assert_allclose(ours, theirs.center_crop(chw(image), size).permute(1, 2, 0), atol=1e-3)


def test_the_crop_is_resized_if_images_are_kept_larger():
    image = picture(80, 80)
    ours = preprocess(jnp.asarray(image)[None], size=32, crop_pct=0.875, **UNIT)[0]
    seen = theirs.center_crop(chw(image).float(), 70)
    wanted = theirs.resize(seen, [32, 32], antialias=True)
    np.testing.assert_allclose(ours, wanted.permute(1, 2, 0), atol=2e-2)


def test_five_places_are_torchvisions_five_crops():
    image = picture(41, 41)
    wanted = [view.permute(1, 2, 0).numpy() for view in v2.FiveCrop(32)(chw(image))]
    ours = [np.asarray(crops.cropped(jnp.asarray(image)[None], 32, 32 / 41, place)[0]) for place in crops.PLACES]
    assert {view.tobytes() for view in ours} == {np.ascontiguousarray(view).tobytes() for view in wanted}
    np.testing.assert_array_equal(ours[0], wanted[-1], err_msg="the centre first")


@pytest.mark.parametrize(
    ("size", "keep_size", "crop_pct", "side"), [(224, None, 0.875, 256), (32, None, 1.0, None), (96, 128, 1.0, 128)]
)
def test_images_are_kept_at(size, keep_size, crop_pct, side):
    assert crops.kept_side(size, keep_size, crop_pct) == side


@pytest.mark.long
@pytest.mark.parametrize("preset", ["light", "medium", "strong"])
def test_a_preset_changes_only_keys_that_have_their_defaults(preset):
    config = complete({"data.augment": preset, "data.random_erasing": 0.5, "data.size": 16}).data
    augment = data.make_augment(config)
    assert augment.erasing == 0.5
    assert augment.crop_scale[1] == 1
    images = jnp.asarray(np.stack([picture()] * 4))
    varied = np.asarray(jax.jit(augment, static_argnums=3)(images, jax.random.key(0), 0, 4))
    assert varied.shape == (4, 16, 16, 3)
    assert np.isfinite(varied).all()
    assert len({image.tobytes() for image in varied}) == 4


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.crop_scale", (0.5,), "two fractions of the area"),
        ("data.crop_scale", (0.9, 0.5), "two fractions of the area"),
        ("data.crop_ratio", (0.0, 1.0), "two ratios"),
        ("data.color_jitter", (0.1, 0.2), "one number or four"),
        ("data.color_jitter", (0.1, 0.2, 0.3, 0.6), "at most 0.5"),
        ("data.crop_pct", 1.5, "greater than 0 and at most 1"),
        ("data.interpolation", "nearest", "one of bilinear, bicubic"),
        ("data.augment", "heavy", "one of none, light, medium, strong"),
        ("evaluation.crops", 10, "1 or 5"),
    ],
)
def test_wrong_settings_are_refused(key, value, message):
    with pytest.raises(UserError, match=message):
        complete({key: value})


def test_crops_of_the_whole_image_are_refused():
    config = complete({"evaluation.crops": 5})
    with pytest.raises(UserError, match=r"each crop would be the whole image; .*crop_pct=0\.875"):
        Experiment(config, None, None)


@pytest.mark.parametrize("keep_size", [None, 48])
def test_evaluation_and_prediction_see_the_same_crop(tmp_path, keep_size):
    """Images kept larger than the network's input are cropped on the device, alike in both."""
    fill(tmp_path / "flowers", ("bee", "fly"), 10)
    settings = {"data.source": f"folder:{tmp_path / 'flowers'}", "data.size": 28, "data.crop_pct": 0.875}
    config = complete(settings | {"data.keep_size": keep_size, "data.interpolation": "bicubic"}).data
    dataset = data.load_dataset(config, seed=0)
    assert dataset.square.side == dataset.test.images.shape[1] == (keep_size or 32)
    preprocess = Preprocess.of_config(config, dataset.square)
    evaluated = data.make_preprocess(config)(jnp.asarray(dataset.test.images))
    read = np.stack([preprocess.read(tmp_path / "flowers" / name) for name in dataset.test.names])
    np.testing.assert_array_equal(preprocess.on_device(jnp.asarray(read)), evaluated)
    assert Preprocess.from_json(preprocess.to_json()) == preprocess
    if keep_size is None:  # torchvision: Resize(32), CenterCrop(28), of images of 12 x 10 pixels
        path = tmp_path / "flowers" / dataset.test.names[0]
        whole = Image.open(path).resize((38, 32), Image.Resampling.BICUBIC)
        wanted = np.asarray(whole.crop((5, 2, 33, 30)), np.float32) / 127.5 - 1
        np.testing.assert_allclose(evaluated[0], wanted, atol=1e-5)


def test_repeated_augmentation_shows_each_image_in_one_batch():
    order = epoch_order(0, 0, np.zeros(100, int), 12, repeats=3)
    assert order.shape == (8, 12)
    for batch in order:
        assert np.unique(batch, return_counts=True)[1].tolist() == [3] * 4
    assert len(np.unique(order)) == 32
    plain = epoch_order(0, 0, np.zeros(100, int), 12)
    np.testing.assert_array_equal(order.ravel()[::3], plain.ravel()[:32], err_msg="the first third of the plain order")
