"""Tests the loss and the metrics of segmentation against torch and scikit-learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from mask_folders import NAMES
from sklearn import metrics

from sft_jax.tasks.losses import dice
from sft_jax.tasks.segmentation import Segmentation
from sft_jax.tasks.segmentation_sums import UNIT, EvalSums, eval_sums, summarize

CLASSES, COUNT, SIDE = 4, 6, 9
WEIGHTS = (0.5, 2.0, 1.0, 3.0)
TASK = Segmentation(("a", "b", "c", "d"))


def drawn(seed=0, void=0.2):
    """Returns logits and masks, in which no pixel is of the last class but one."""
    generator = np.random.default_rng(seed)
    logits = generator.standard_normal((COUNT, SIDE, SIDE, CLASSES)).astype(np.float32)
    truth = generator.choice([0, 1, 3], (COUNT, SIDE, SIDE)).astype(np.uint8)
    return logits, np.where(generator.random(truth.shape) < void, np.uint8(255), truth)


def in_parts(logits, truth, mask, size=2):
    """Returns the sums over batches of `size`, added as `Evaluator` does."""
    parts = [
        jax.device_get(eval_sums(*(jnp.asarray(part[first : first + size]) for part in (logits, truth, mask))))
        for first in range(0, len(logits), size)
    ]
    total, loss, confusion = (np.sum([np.asarray(part[i], np.float64) for part in parts], axis=0) for i in range(3))
    return EvalSums(total.astype(np.int32), loss, confusion)


def test_metrics_are_those_of_scikit_learn():
    logits, truth = drawn()
    figures = summarize(in_parts(logits, truth, np.ones(COUNT, bool)))
    valid = truth != 255
    said, wanted = logits.argmax(-1)[valid], truth[valid]
    confusion = metrics.confusion_matrix(wanted, said, labels=range(CLASSES))
    np.testing.assert_array_equal(figures["confusion"], confusion)
    overlaps = metrics.jaccard_score(wanted, said, labels=range(CLASSES), average=None)
    np.testing.assert_allclose(figures["per_class_iou"], overlaps, rtol=1e-12)
    assert figures["mean_iou"] == pytest.approx(overlaps.mean(), rel=1e-12)
    assert figures["pixel_accuracy"] == pytest.approx(metrics.accuracy_score(wanted, said), rel=1e-12)
    recalls = metrics.recall_score(wanted, said, labels=[0, 1, 3], average=None)
    assert figures["mean_accuracy"] == pytest.approx(recalls.mean(), rel=1e-12)
    np.testing.assert_allclose([figures["per_class_accuracy"][label] for label in (0, 1, 3)], recalls, rtol=1e-12)
    assert figures["per_class_accuracy"][2] is None
    assert figures["count"] == COUNT
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits[valid]), torch.from_numpy(wanted).long())
    assert figures["loss"] == pytest.approx(float(loss), rel=1e-6)


def test_a_class_that_is_nowhere_is_left_out_of_the_means():
    logits, truth = drawn()
    logits[..., 2] = -9
    figures = summarize(in_parts(logits, truth, np.ones(COUNT, bool)))
    assert figures["per_class_iou"][2] is None
    others = [figures["per_class_iou"][label] for label in (0, 1, 3)]
    assert figures["mean_iou"] == pytest.approx(np.mean(others))


def test_masked_out_images_do_not_count_even_with_nan():
    logits, truth = drawn()
    wanted = in_parts(logits[:5], truth[:5], np.ones(5, bool), size=5)
    broken = logits.copy()
    broken[5] = np.nan
    found = in_parts(broken, truth, np.arange(COUNT) < 5, size=COUNT)
    assert found.total == 5
    np.testing.assert_array_equal(found.confusion, wanted.confusion)
    np.testing.assert_allclose(found.loss, wanted.loss, rtol=1e-6)


def test_counts_are_exact_far_beyond_32_bits():
    """Half of all pixels of 40,000 images of 512 x 512 are right: 5 billion."""
    pixels, steps = 512 * 512 * 8, 5000
    ((right, wrong),) = (divmod(pixels // 2, UNIT),) * 1
    step = np.zeros((2, 2, 2), np.float32)
    step[:, 0, 0], step[:, 0, 1] = (right, wrong), (right, wrong)
    figures = summarize(EvalSums(np.int32(8 * steps), np.float64(1), step.astype(np.float64) * steps))
    assert figures["confusion"] == [[pixels // 2 * steps] * 2, [0, 0]]
    assert sum(figures["confusion"][0]) == 40_000 * 512 * 512 > 2**33
    assert figures["pixel_accuracy"] == 0.5


def test_a_large_batch_is_counted_exactly():
    logits = jnp.zeros((3, 300, 300, 2)).at[..., 1].set(1)
    truth = jnp.ones((3, 300, 300), jnp.uint8)
    sums = eval_sums(logits, truth, jnp.ones(3, bool))
    assert summarize(jax.device_get(sums))["confusion"] == [[0, 0], [0, 270_000]]
    assert float(sums.confusion[0, 1, 1]) == 270_000 // UNIT


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_torchs_with_ignored_pixels_on_any_number_of_devices(weights, smoothing):
    logits, truth = drawn(void=0.4)
    task = dataclasses.replace(TASK, class_weights=weights, label_smoothing=smoothing)
    theirs = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).permute(0, 3, 1, 2),
        torch.from_numpy(truth).long(),
        None if weights is None else torch.tensor(weights),
        ignore_index=255,
        label_smoothing=smoothing,
    )

    def loss(logits, truth, axis_name=None):
        batch = {"mask": truth}
        return (task.loss_scale(batch, axis_name) * task.loss(logits, batch)).mean()

    assert float(loss(jnp.asarray(logits), jnp.asarray(truth))) == pytest.approx(float(theirs), rel=1e-5)
    # Devices have different numbers of pixels that count; the step averages their losses.
    apart = jax.pmap(lambda *own: loss(*own, "devices"), axis_name="devices")
    shares = (array.reshape(3, 2, *array.shape[1:]) for array in (logits, truth))
    assert float(apart(*shares).mean()) == pytest.approx(float(theirs), rel=1e-5)


def test_dice_is_the_f1_of_probabilities_over_the_classes_of_an_image():
    logits, truth = drawn()
    truth[0] = 255
    found = dice(jnp.asarray(logits), jnp.where(truth == 255, 0, truth).astype(jnp.int32), jnp.asarray(truth != 255))
    assert float(found[0]) == 0
    for row in range(1, COUNT):
        valid = truth[row] != 255
        chances = torch.softmax(torch.from_numpy(logits[row][valid]), -1).numpy()
        right = np.eye(CLASSES)[truth[row][valid]]
        score = [2 * (chances * right)[:, k].sum() / (chances + right)[:, k].sum() for k in (0, 1, 3)]
        assert float(found[row]) == pytest.approx(1 - np.mean(score), rel=1e-5)
    hard = 50.0 * jax.nn.one_hot(jnp.asarray(truth), CLASSES)
    assert float(TASK.loss(hard, {"mask": jnp.asarray(truth)}).max()) < 1e-6
    both = dataclasses.replace(TASK, kind="both").loss(jnp.asarray(logits), {"mask": jnp.asarray(truth)})
    parts = [
        dataclasses.replace(TASK, kind=kind).loss(jnp.asarray(logits), {"mask": jnp.asarray(truth)})
        for kind in ("cross_entropy", "dice")
    ]
    np.testing.assert_allclose(both, parts[0] + parts[1], rtol=1e-6)


@pytest.mark.parametrize("kind", ["cross_entropy", "dice", "both"])
def test_a_batch_without_any_pixel_has_a_gradient_of_zero(kind):
    task = dataclasses.replace(TASK, kind=kind)
    batch = {"mask": jnp.full((2, SIDE, SIDE), 255, jnp.uint8)}

    def loss(logits):
        return (task.loss_scale(batch, None) * task.loss(logits, batch)).mean()

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(drawn()[0][:2]))
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_names():
    task = Segmentation.of_network(NAMES, {})
    assert task.outputs == 3
    assert task.described() == "a class per pixel, 3 classes"
