"""Tests of initial weights from weights for the same, overlapping and different classes."""

import functools
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from sft_jax.config import complete, flatten
from sft_jax.data.preprocess import Preprocess
from sft_jax.errors import UserError
from sft_jax.models import Network, builder, initial_arrays
from sft_jax.models.architecture import Pretrained
from sft_jax.models.weights import Weights
from sft_jax.tasks.classification import Classification
from sft_jax.training.start import initial_weights

NAMES = ("ant", "bee", "cat")
CONFIG = complete({"model.name": "tiny", "init": "w.safetensors", "seed": 3})


def started(names, config=CONFIG, metadata=None):
    """Returns weights with the classes `NAMES`, the initial parameters made from them, and their description."""
    arrays = weights_of(NAMES, seed=1)
    build = builder(config.model, len(names))
    init = Weights(arrays, "tiny", NAMES, metadata or {})
    experiment = SimpleNamespace(
        config=config,
        build=build,
        network=Network.abstract(build),
        task=Classification(names),
        dataset=SimpleNamespace(class_names=names),
    )
    params, batch_stats, said = initial_weights(experiment, init)
    return arrays, jax.device_get(params | batch_stats), said


@functools.cache
def weights_of(names, seed):
    params, batch_stats = initial_arrays(builder(CONFIG.model, len(names)), seed)
    return jax.device_get(params | batch_stats)


def test_the_same_classes_keep_everything():
    arrays, initial, said = started(NAMES)
    assert initial.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(initial[key], array, strict=True)
    assert said == "weights of w.safetensors with its head"


@pytest.mark.parametrize(
    ("names", "kept", "words"),
    [
        (("dog", "eel", "fox", "gnu"), {}, " with a new head"),
        (("ant", "bee", "bird", "cat"), {0: 0, 1: 1, 3: 2}, "; head: 3 of 4 classes reused, new: bird"),
    ],
)
def test_new_classes_get_the_rows_of_a_new_head(names, kept, words):
    """Rows that are not reused are bit-identical to those drawn from the seed."""
    arrays, initial, said = started(names)
    wanted, _ = jax.device_get(initial_arrays(builder(CONFIG.model, len(names)), CONFIG.seed, prefix="fc."))
    for key, array in wanted.items():
        array = array.copy()
        for new, old in kept.items():
            array[..., new] = arrays[key][..., old]
        np.testing.assert_array_equal(initial[key], array, strict=True)
    np.testing.assert_array_equal(initial["conv1.kernel"], arrays["conv1.kernel"])
    assert said == f"weights of w.safetensors{words}"


def test_another_normalisation_than_the_weights_were_trained_with_is_reported():
    pretrained = Preprocess.of_pretrained(Pretrained())
    metadata = {"preprocess": json.dumps(pretrained.to_json())}
    _, _, said = started(NAMES, metadata=metadata)
    assert said.endswith(
        "; notice: they were trained with --config.data.mean=0.485,0.456,0.406 --config.data.std=0.229,0.224,0.225"
    )
    same = complete(flatten(CONFIG) | {"data.mean": pretrained.mean, "data.std": pretrained.std})
    assert "notice" not in started(NAMES, same, metadata)[2]


def test_another_stem_is_refused_with_the_flag_to_use():
    with pytest.raises(
        UserError, match=r"the weights of w.safetensors have a 7x7 stem, .*--config.model.stem=imagenet"
    ):
        started(NAMES, complete({"model.name": "tiny", "init": "w.safetensors", "model.stem": "cifar3x3"}))
