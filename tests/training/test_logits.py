"""Tests that `predict_all` returns logits in the order of the images, consistent with the evaluator."""

import functools

import jax
import numpy as np
import pytest
from tiny_runs import network as tiny_network

from sft_jax import data
from sft_jax.config import complete
from sft_jax.data.dataset import StreamedSplit
from sft_jax.data.loader import Loader
from sft_jax.runtime.devices import AXIS, Devices
from sft_jax.tasks.classification import Classification
from sft_jax.tasks.classification_sums import eval_sums, summarize
from sft_jax.training.evaluator import Evaluator, predict_all

BATCH = 24


@pytest.fixture(scope="module")
def network():
    return tiny_network(5, axis_name=AXIS)


@pytest.fixture(scope="module")
def digits():
    config = complete({"data.source": "digits:0-4", "data.size": 16})
    return data.load_dataset(config.data, seed=0, limit_eval=61).validation, data.make_preprocess(config.data)


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("placement", ["replicated", "sharded", "streamed"])
def test_logits_are_in_the_order_of_the_images(network, digits, count, placement):
    split, preprocess = digits
    images, labels = split.images, split.labels
    if placement == "streamed":
        split = StreamedSplit.of_images(images.__getitem__, np.arange(len(labels)), labels)
    devices = Devices(jax.devices()[:count])
    loader = Loader(split, devices, "auto" if placement == "streamed" else placement)
    assert loader.placement == ("replicated" if (count, placement) == (1, "sharded") else placement)
    logits = predict_all(network, [data.of_image(preprocess)], BATCH)(network.params, network.batch_stats, loader)
    assert (logits.shape, logits.dtype) == ((61, 5), np.float32)
    whole = jax.jit(functools.partial(network.apply, train=False))
    wanted, _ = whole(network.params, network.batch_stats, preprocess(images))
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)

    evaluate = Evaluator(network, Classification(tuple("01234")), [data.of_image(preprocess)], BATCH)
    theirs = summarize(evaluate(network.params, network.batch_stats, loader))
    ours = summarize(jax.jit(eval_sums)(logits, labels, np.ones(61, bool)))
    for name in ("accuracy", "top5", "count", "per_class_accuracy", "confusion"):
        assert ours[name] == theirs[name], name
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert ours["ece"] == pytest.approx(theirs["ece"], abs=1e-5)
