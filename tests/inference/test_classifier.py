"""Tests of `sft_jax.load`, and that it preprocesses images exactly as evaluation does."""

import functools
import subprocess
import sys

import numpy as np
import pytest
from made_run import NAMES, make_run
from PIL import Image

import sft_jax
from sft_jax import data
from sft_jax.data.images.square import Square
from sft_jax.errors import UserError
from sft_jax.inference.network import BATCH
from sft_jax.models.weights import Weights, save_weights
from sft_jax.run.weights import load_run_weights

MEAN, STD = np.array([0.4, 0.5, 0.6], np.float32), np.array([0.2, 0.3, 0.25], np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "digits", data__source="digits")


@pytest.fixture(scope="module")
def classifier(run):
    return sft_jax.load(run.folder)


def pixels(count, height=16, width=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def test_logits_are_those_of_the_network_on_normalised_images(classifier):
    images = pixels(5)
    logits = classifier.logits(images)
    assert (logits.shape, logits.dtype) == ((5, len(NAMES)), np.float32)
    assert np.ptp(logits, axis=0).max() > 0.1, "different images have different logits"
    inputs = (images.astype(np.float32) / 255 - MEAN) / STD
    np.testing.assert_allclose(classifier.model(inputs, train=False), logits, atol=1e-4)
    np.testing.assert_allclose(classifier.logits(images.astype(np.float32) / 255), logits, atol=1e-4)


def test_logits_do_not_depend_on_the_other_images(classifier):
    images = pixels(2 * BATCH + 3)
    logits = classifier.logits(images)
    assert len(logits) == len(images)
    np.testing.assert_allclose(np.concatenate([classifier.logits(image[None]) for image in images]), logits, atol=1e-4)
    assert classifier.logits(images[:0]).shape == (0, len(NAMES))


def test_only_a_few_batch_sizes_are_compiled(run):
    classifier = sft_jax.load(run.folder)
    for count in (3, 4, BATCH + 1, 7, BATCH - 1, 2, 1):
        classifier.logits(pixels(count))
    assert classifier._compiled == {4, BATCH}


@pytest.mark.parametrize("side", [8, 24])
def test_other_sizes_are_resized_as_in_evaluation(classifier, run, side):
    images = pixels(3, side, side)
    inputs = data.make_preprocess(run.config().data)(images)
    np.testing.assert_allclose(classifier.logits(images), classifier.program(inputs), atol=1e-4)


def test_a_run_on_a_folder_crops_images_as_in_training(tmp_path):
    classifier = sft_jax.load(str(make_run(tmp_path, data__source="folder:somewhere").folder))
    images = pixels(3, 20, 30)
    squares = np.stack([Square(16).of_array(image) for image in images])
    np.testing.assert_array_equal(classifier.logits(images), classifier.logits(squares))
    # Floating-point values are not rounded; uint8 images are, once along each axis.
    exact = np.stack([classifier.preprocess.of_array(image.astype(np.float32) / 255) for image in images]) * 255
    assert exact.dtype == np.float32
    assert 0.1 < np.abs(exact - squares).max() <= 1


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (pixels(2).astype(np.int32), TypeError, "must be uint8 in 0..255 or floating point in 0..1, not int32"),
        (pixels(2).astype(np.uint16), TypeError, "must be uint8 in 0..255 or floating point in 0..1, not uint16"),
        (pixels(2).astype(np.float32), ValueError, "must be in 0..1, not 0..255; pass pixel values as uint8"),
        (pixels(2).astype(np.float64) / 255 + 1e-3, ValueError, "must be in 0..1, not 0.001..1.001"),
        (pixels(2).astype(np.float32) / 255 - 0.5, ValueError, "and do not normalise them"),
        (np.full((1, 4, 4, 3), np.nan, np.float32), ValueError, "must be in 0..1, not nan..nan"),
        (
            pixels(2).transpose(0, 3, 1, 2),
            ValueError,
            r"\[n, height, width, 3\], or 1 channel for gray, not \[2, 3, 16, 16\]",
        ),
        (pixels(1)[0].transpose(2, 0, 1), ValueError, r"images of shape \[3, 16, 16\] are ambiguous, gray or channels"),
        (pixels(2)[:, :0], ValueError, r"not \[2, 0, 16, 3\]"),
        (pixels(2)[0, 0, :, 0], ValueError, r"not \[16\]"),
        ([pixels(2), pixels(3)], ValueError, r"images in a list must be \[height, width, 3\], not \[2, 16, 16, 3\]"),
    ],
)
def test_unusable_images_are_refused(classifier, images, error, message):
    with pytest.raises(error, match=message):
        classifier.logits(images)


def test_predictions_are_ranked_classes(classifier):
    images = pixels(4)
    labels, probabilities = classifier.predict(images, top=3)
    assert labels.shape == probabilities.shape == (4, 3)
    logits = classifier.logits(images)
    assert labels[:, 0].tolist() == [NAMES[row] for row in logits.argmax(-1)]
    assert (np.diff(probabilities) <= 0).all()
    everything = np.exp(logits - logits.max(-1, keepdims=True))
    np.testing.assert_allclose(probabilities[:, 0], (everything.max(-1) / everything.sum(-1)), rtol=1e-5)
    labels, probabilities = classifier.predict(images)
    assert labels.shape == (4, 5)
    labels, probabilities = classifier.predict(images, top=100)
    assert set(labels[0].tolist()) == set(NAMES)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)
    with pytest.raises(ValueError, match="top=0 must be 1 or more"):
        classifier.predict(images, top=0)


def test_equal_logits_keep_the_order_of_the_classes(classifier):
    labels, _ = classifier.decoder.predict(np.zeros((1, len(NAMES)), np.float32), 3)
    assert labels.tolist() == [list(NAMES[:3])]


def test_class_names_and_preprocessing_are_those_of_the_run(classifier):
    assert classifier.class_names == NAMES
    preprocess = classifier.preprocess
    assert (preprocess.size, preprocess.mean, preprocess.std) == (16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


def test_images_of_different_sizes_are_predicted_at_once(classifier):
    images = [pixels(1, side, side)[0] for side in (16, 8, 24)]
    wanted = np.concatenate([classifier.logits(image[None]) for image in images])
    np.testing.assert_allclose(classifier.logits(images), wanted, atol=1e-4)


@pytest.mark.parametrize("source", ["digits", "folder:somewhere"])
def test_paths_pillows_images_arrays_and_lists_of_them_are_predicted_alike(tmp_path, source):
    """Images in common formats need no conversion."""
    classifier = sft_jax.load(make_run(tmp_path / "run", data__source=source).folder)
    image = pixels(1, 20, 30)[0]
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    wanted = classifier.logits(image[None])
    close = functools.partial(np.testing.assert_allclose, atol=1e-4)
    for given in (path, str(path), [path], (str(path),), Image.open(path), [Image.open(path)], image, [image]):
        close(classifier.logits(given), wanted)
    mixed = [path, Image.open(path), pixels(1, 16, 16, seed=1)[0], image]
    close(classifier.logits(mixed), np.concatenate([wanted, wanted, classifier.logits(mixed[2]), wanted]))
    close(classifier.logits(tmp_path.glob("*.png")), wanted)
    labels, probabilities = classifier.predict(path, top=2)
    assert labels.shape == probabilities.shape == (1, 2)
    square = pixels(1)
    for dtype, tolerance in ((np.float32, 1e-4), (np.float64, 1e-4), (np.float16, 0.02)):
        logits = classifier.logits((square / 255).astype(dtype))
        np.testing.assert_allclose(logits, classifier.logits(square), atol=tolerance)


def test_gray_images_are_rgb_with_three_equal_channels(classifier):
    gray = pixels(4)[..., 0]
    wanted = classifier.logits(np.repeat(gray[..., None], 3, -1))
    for given in (gray, gray[..., None], [Image.fromarray(image) for image in gray], list(gray), gray / 255):
        np.testing.assert_allclose(classifier.logits(given), wanted, atol=1e-4)
    np.testing.assert_allclose(classifier.logits(gray[0]), wanted[:1], atol=1e-4)
    np.testing.assert_allclose(classifier.logits(gray.astype(np.uint16) << 8), wanted, atol=1e-4)


def test_a_path_that_cannot_be_read_is_named(classifier, tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}/no.png cannot be read: No such file or directory"):
        classifier.predict([tmp_path / "no.png"])


def test_warnings_of_pillow_name_the_file(classifier, tmp_path):
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(pixels(1)[0]).save(tmp_path / name, exif=exif)
    with pytest.warns(UserWarning, match=r"[ab].jpg: Corrupt EXIF data.* \(and 1 more files\)") as caught:
        classifier.predict(sorted(tmp_path.glob("*.jpg")))
    assert len(caught) == 1


def test_a_network_with_one_output_is_refused(tmp_path, run):
    """The softmax of one number is 1, so class 0 would have 100% confidence for any image."""
    arrays = dict(load_run_weights(run.folder).arrays)
    arrays |= {"fc.kernel": arrays["fc.kernel"][:, :1], "fc.bias": arrays["fc.bias"][:1]}
    save_weights(tmp_path / "w.safetensors", Weights(arrays, "tiny", None, {}))
    classifier = sft_jax.load(tmp_path / "w.safetensors")
    with pytest.raises(
        UserError, match="the network has a single output, .*use sigmoid of `logits` as its probability"
    ) as said:
        classifier.predict(pixels(1))
    assert "\n" not in str(said.value)
    assert classifier.logits(pixels(1)).shape == (1, 1)


@pytest.mark.parametrize("names", [NAMES, None])
def test_a_converted_file_is_used_as_in_torchvision(tmp_path, run, classifier, names):
    save_weights(tmp_path / "w.safetensors", Weights(load_run_weights(run.folder).arrays, "tiny", names, {}))
    loaded = sft_jax.load(tmp_path / "w.safetensors")
    assert loaded.class_names == (names or tuple("012345"))
    assert (loaded.preprocess.size, loaded.preprocess.resize) == (224, 256)
    assert (loaded.preprocess.mean, loaded.preprocess.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    inputs = np.random.default_rng(0).standard_normal((2, 16, 16, 3), np.float32)
    np.testing.assert_array_equal(loaded.program(inputs), classifier.program(inputs))


def test_a_converted_file_without_preprocessing_is_refused(tmp_path, run):
    """E.g. with a 3x3 stem; ImageNet's preprocessing would be silently wrong."""
    weights = Weights(load_run_weights(run.folder).arrays, "tiny", NAMES, {"stem": "imagenet"})
    save_weights(tmp_path / "weights.safetensors", weights)
    with pytest.raises(UserError, match="convert it again with --size, --mean and --std"):
        sft_jax.load(tmp_path / "weights.safetensors")


def test_the_latest_checkpoint_may_be_chosen(run):
    latest, best = (sft_jax.load(run.folder, checkpoint=name) for name in ("latest", "best"))
    np.testing.assert_array_equal(latest.logits(pixels(2)), best.logits(pixels(2)))


def test_a_checkpoint_without_the_averaged_weights_is_refused(tmp_path):
    folder = make_run(tmp_path, optimizer__name="schedule_free_sgd").folder
    with pytest.raises(UserError, match="does not contain the averaged weights.*use --checkpoint best"):
        sft_jax.load(folder, checkpoint="latest")
    assert sft_jax.load(folder).class_names == NAMES


def test_paths_that_cannot_be_opened_are_refused(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}/no does not exist; give a run, a converted file or an export"):
        sft_jax.load(tmp_path / "no")
    with pytest.raises(UserError, match="contains no run: it has no config.json"):
        sft_jax.load(tmp_path)
    (tmp_path / "w.pth").write_bytes(b"")
    with pytest.raises(UserError, match="is not a .safetensors file; convert it with"):
        sft_jax.load(tmp_path / "w.pth")


def test_importing_the_package_does_not_import_jax():
    code = "import sft_jax, sys; assert 'jax' not in sys.modules; assert 'load' in dir(sft_jax)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        _ = sft_jax.laod
