"""The pass that gives every image's logits: in the images' order, and what the evaluator counts."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from sft_jax import data
from sft_jax.config import complete
from sft_jax.data.dataset import StreamedSplit
from sft_jax.data.loader import Feed
from sft_jax.models import Functional
from sft_jax.models.resnet import BasicBlock, ResNet, Shape
from sft_jax.runtime.devices import AXIS, Devices
from sft_jax.tasks.classification import eval_sums, summarize
from sft_jax.training.evaluator import Evaluator
from sft_jax.training.features import logits

BATCH = 24


@pytest.fixture(scope="module")
def network():
    return Functional(ResNet(Shape(BasicBlock, (1, 1, 1, 1)), 5, rngs=nnx.Rngs(params=0), axis_name=AXIS))


@pytest.fixture(scope="module")
def digits():
    config = complete({"data.source": "digits:0-4", "data.size": 16})
    return data.load_dataset(config.data, seed=0, limit_eval=61).validation, data.make_preprocess(config.data)


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("streamed", [False, True])
def test_logits_of_every_image_in_order(network, digits, count, streamed):
    split, preprocess = digits
    images, labels = split.images, split.labels
    if streamed:
        split = StreamedSplit(images.__getitem__, np.arange(len(labels)), labels)
    devices = Devices(jax.devices()[:count])
    feed = Feed(split, devices)
    assert feed.resident != streamed
    found = logits(network, devices, preprocess, BATCH)(network.params, network.batch_stats, feed)
    assert (found.shape, found.dtype) == ((61, 5), np.float32)
    whole = jax.jit(functools.partial(network.apply, train=False))
    wanted, _ = whole(network.params, network.batch_stats, preprocess(images))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)

    evaluate = Evaluator(network, preprocess, devices, 5, BATCH)
    theirs = summarize(evaluate(network.params, network.batch_stats, feed))
    ours = summarize(jax.jit(eval_sums)(found, labels, np.ones(61, bool)))
    for name in ("accuracy", "top5", "count", "per_class_accuracy", "confusion"):
        assert ours[name] == theirs[name], name
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert ours["ece"] == pytest.approx(theirs["ece"], abs=1e-5)
