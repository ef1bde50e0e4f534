"""The precision of a network's products, which differs from that of its activations on accelerators."""

import re

import jax
import numpy as np
import optax
import pytest

from sft_jax import models
from sft_jax.config import complete
from sft_jax.models.precision import PRECISIONS, factors
from sft_jax.tasks.classification import Classification
from sft_jax.training.state import TrainState
from sft_jax.training.step import make_train_step

# jax_default_matmul_precision -> the precision of StableHLO's operations.
LEVELS = {"float32": "DEFAULT", "tf32": "HIGH", "highest": "HIGHEST", "bfloat16": "DEFAULT"}


def network(precision):
    config = complete({"model.name": "tiny", "data.size": 8}).model
    return models.Network.abstract(models.builder(config, 3, size=8, precision=precision))


def product_levels(lowered):
    """Returns the levels of the convolutions' factors; the head is always at the highest."""
    text = lowered.as_text()
    levels = re.findall(r"stablehlo.convolution.*?precision_config = \[#stablehlo<precision (\w+)>", text)
    levels += ["DEFAULT"] * (text.count("stablehlo.convolution") - len(levels))
    assert levels
    return set(levels)


@pytest.mark.long
@pytest.mark.parametrize("precision", PRECISIONS)
def test_forward_and_backward_products_have_the_precision(precision):
    tiny = network(precision)
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), np.float32)

    def forward(params, batch_stats, images):
        return tiny.apply(params, batch_stats, images, train=False)[0]

    # For a TPU, where convolutions are XLA's own.
    lowering = {"lowering_platforms": ("tpu",)}
    traced = jax.jit(forward).trace(tiny.params, tiny.batch_stats, images)
    assert product_levels(traced.lower(**lowering)) == {LEVELS[precision]}
    task, optimizer = Classification(("a", "b", "c")), optax.sgd(0.1)
    step = make_train_step(tiny, task, optimizer)
    state = jax.eval_shape(lambda *arrays: TrainState.create(*arrays, optimizer), tiny.params, tiny.batch_stats)
    batch = {"image": images, "label": jax.ShapeDtypeStruct((2,), np.int32)}
    assert product_levels(jax.jit(step).trace(state, batch).lower(**lowering)) == {LEVELS[precision]}


def test_the_default_precision_leaves_a_surrounding_one():
    """Converters compare with the reference at the highest precision."""
    tiny, images = network("float32"), jax.ShapeDtypeStruct((2, 8, 8, 3), np.float32)
    with jax.default_matmul_precision("highest"):
        traced = jax.jit(lambda *arrays: tiny.apply(*arrays, train=False)[0]).trace(
            tiny.params, tiny.batch_stats, images
        )
    assert product_levels(traced.lower(lowering_platforms=("tpu",))) == {"HIGHEST"}


@pytest.mark.parametrize(
    ("precision", "platform", "tf32", "words"),
    [
        ("float32", "cpu", False, "float32"),
        ("float32", "gpu", True, "TF32"),
        ("float32", "gpu", False, "float32"),
        ("highest", "gpu", True, "float32"),
        ("float32", "tpu", False, "bfloat16"),
        ("tf32", "tpu", False, "3 passes of bfloat16"),
        ("highest", "tpu", False, "float32, 6 passes of bfloat16"),
        ("bfloat16", "tpu", False, "bfloat16"),
    ],
)
def test_what_products_are_computed_from(precision, platform, tf32, words):
    assert factors(precision, platform, tf32=tf32) == words
