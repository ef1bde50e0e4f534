"""`sft_jax.load`: what it opens, and that images go through just what they go through in evaluation."""

import subprocess
import sys

import numpy as np
import pytest
from made_run import NAMES, make_run

import sft_jax
from sft_jax import data
from sft_jax.classifier import BATCH
from sft_jax.data.images import array_to_square
from sft_jax.errors import UserError
from sft_jax.runs import load_run_weights
from sft_jax.weights import Weights, save_weights

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
    found = classifier.logits(images)
    assert (found.shape, found.dtype) == ((5, len(NAMES)), np.float32)
    assert np.ptp(found, axis=0).max() > 0.1, "different images have different logits"
    inputs = (images.astype(np.float32) / 255 - MEAN) / STD
    np.testing.assert_allclose(classifier.model(inputs, train=False), found, atol=1e-4)
    np.testing.assert_allclose(classifier.logits(images.astype(np.float32) / 255), found, atol=1e-4)


def test_each_image_by_itself_or_among_many(classifier):
    images = pixels(2 * BATCH + 3)
    found = classifier.logits(images)
    assert len(found) == len(images)
    np.testing.assert_allclose(np.concatenate([classifier.logits(image[None]) for image in images]), found, atol=1e-4)
    assert classifier.logits(images[:0]).shape == (0, len(NAMES))


def test_few_numbers_of_images_are_compiled_for(run):
    classifier = sft_jax.load(run.folder)
    for count in (3, 4, BATCH + 1, 7, BATCH - 1, 2, 1):
        classifier.logits(pixels(count))
    assert classifier._compiled == {4, BATCH}


@pytest.mark.parametrize(("height", "width"), [(8, 8), (24, 24), (20, 30)])
def test_other_sizes_are_resized_as_in_evaluation(classifier, run, height, width):
    images = pixels(3, height, width)
    inputs = data.make_preprocess(run.config().data)(images)
    np.testing.assert_allclose(classifier.logits(images), classifier.program(inputs), atol=1e-4)


def test_a_run_on_a_folder_crops_as_its_pictures_were(tmp_path):
    classifier = sft_jax.load(str(make_run(tmp_path, data__source="folder:somewhere").folder))
    images = pixels(3, 20, 30)
    squares = np.stack([array_to_square(image, 16) for image in images])
    np.testing.assert_array_equal(classifier.logits(images), classifier.logits(squares))
    # Values need not be whole ones then: the difference is the rounding of a picture, once along each axis.
    exact = classifier.preprocess.on_host(images.astype(np.float32) / 255) * 255
    assert exact.dtype == np.float32
    assert 0.1 < np.abs(exact - squares).max() <= 1


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (pixels(2).astype(np.int32), TypeError, "must be uint8 in 0..255 or float32 in 0..1, not int32"),
        (pixels(2).astype(np.float64) / 255, TypeError, "not float64"),
        (pixels(2).astype(np.float32), ValueError, "must be in 0..1, not 0..255: give pixels as uint8"),
        (pixels(2).astype(np.float32) / 255 - 0.5, ValueError, "do not normalise images, which is done here"),
        (np.full((1, 4, 4, 3), np.nan, np.float32), ValueError, "must be in 0..1, not nan..nan"),
        (pixels(2)[0], ValueError, r"not \[16, 16, 3\]; for one image: images\[None\]"),
        (pixels(2).transpose(0, 3, 1, 2), ValueError, r"must be \[n, height, width, 3\], RGB, not \[2, 3, 16, 16\]"),
        (pixels(2)[:, :0], ValueError, r"not \[2, 0, 16, 3\]"),
    ],
)
def test_images_that_are_refused(classifier, images, error, message):
    with pytest.raises(error, match=message):
        classifier.logits(images)


def test_predictions(classifier):
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


def test_equal_logits_stay_in_the_order_of_the_classes(classifier):
    labels, _ = classifier.ranked(np.zeros((1, len(NAMES)), np.float32), 3)
    assert labels.tolist() == [list(NAMES[:3])]


def test_what_a_run_knows_of_its_images(classifier):
    assert classifier.class_names == NAMES
    found = classifier.preprocess
    assert (found.size, found.mean, found.std) == (16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


def test_pictures_of_different_sizes_at_once(classifier):
    pictures = [pixels(1, side, side)[0] for side in (16, 8, 24)]
    wanted = np.concatenate([classifier.logits(picture[None]) for picture in pictures])
    np.testing.assert_allclose(classifier.picture_logits(pictures), wanted, atol=1e-4)


@pytest.mark.parametrize("names", [NAMES, None])
def test_a_converted_file_is_used_as_torchvision_does(tmp_path, run, classifier, names):
    save_weights(tmp_path / "w.safetensors", Weights(load_run_weights(run.folder).arrays, "tiny", names, {}))
    found = sft_jax.load(tmp_path / "w.safetensors")
    assert found.class_names == (names or tuple("012345"))
    assert found.preprocess.size == 224
    assert (found.preprocess.mean, found.preprocess.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    inputs = np.random.default_rng(0).standard_normal((2, 16, 16, 3), np.float32)
    np.testing.assert_array_equal(found.program(inputs), classifier.program(inputs))


def test_the_latest_checkpoint_may_be_asked_for(run, classifier):
    found = sft_jax.load(run.folder, checkpoint="latest")
    np.testing.assert_array_equal(found.logits(pixels(2)), classifier.logits(pixels(2)))


def test_weights_that_are_not_those_to_evaluate(tmp_path):
    folder = make_run(tmp_path, optimizer__name="schedule_free_sgd").folder
    with pytest.raises(UserError, match="holds the weights that it trains, not their average.*use --checkpoint best"):
        sft_jax.load(folder, checkpoint="latest")
    assert sft_jax.load(folder).class_names == NAMES


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(UserError, match=f"there is no run, converted file or export {tmp_path}/no"):
        sft_jax.load(tmp_path / "no")
    with pytest.raises(UserError, match="holds no run: there is no config.json in it"):
        sft_jax.load(tmp_path)
    (tmp_path / "w.pth").write_bytes(b"")
    with pytest.raises(UserError, match="is no .safetensors file; convert it first"):
        sft_jax.load(tmp_path / "w.pth")


def test_importing_the_package_is_quick():
    code = "import sft_jax, sys; assert 'jax' not in sys.modules; assert 'load' in dir(sft_jax)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        _ = sft_jax.laod
