"""Tests of what stays in float32 with bfloat16 activations, and of the reference for exports of such a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_run import make_run
from tiny_runs import network as tiny_network

import sft_jax
from sft_jax.export import TOLERANCES, export, relative_difference
from sft_jax.models import HeadNetwork
from sft_jax.tasks.losses import cross_entropy

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def network():
    return tiny_network(5, dtype=jnp.bfloat16)


@pytest.mark.long
def test_logits_are_computed_in_float32(network):
    """With 8 bits, logits near 100 that differ by less than 0.5 would be equal."""
    features = jnp.asarray(np.random.default_rng(0).normal(10, 1, (8, 128)), jnp.float32)
    logits, _ = HeadNetwork(network).apply(network.params, network.batch_stats, features, train=True)
    kernel, bias = (np.asarray(network.params[f"fc.{part}"], np.float64) for part in ("kernel", "bias"))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, np.asarray(features, np.float64) @ kernel + bias, rtol=1e-5, atol=1e-5)
    assert (np.asarray(logits) != logits.astype(jnp.bfloat16).astype(jnp.float32)).any()


def test_the_loss_and_its_gradient_are_float32(network):
    images = jnp.asarray(IMAGES, jnp.float32) / 255

    def loss(params):
        logits, _ = network.apply(params, network.batch_stats, images, train=True)
        return cross_entropy(logits, jnp.zeros(4, jnp.int32)).mean()

    value, gradient = jax.eval_shape(jax.value_and_grad(loss), network.params)
    assert value.dtype == jnp.float32
    assert {leaf.dtype for leaf in gradient.values()} == {jnp.dtype(jnp.float32)}
    features = jax.eval_shape(network.features, network.params, network.batch_stats, images)
    assert features.dtype == jnp.float32
    activations = jax.eval_shape(
        lambda params: dict(network.bind(params, network.batch_stats).stages(images)), network.params
    )
    assert {stage.dtype for stage in activations.values()} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.long
def test_an_export_is_compared_with_the_run_in_bfloat16(tmp_path):
    """It may round elsewhere (with jax 0.10.2 it does), but is closer to the run than to the float32 network."""
    for precision in ("bfloat16", "float32"):
        make_run(tmp_path / precision, precision=precision)
    difference, _ = export(tmp_path / "bfloat16", "best", tmp_path / "file.stablehlo")
    assert sft_jax.load(tmp_path / "file.stablehlo").precision == "bfloat16"
    assert difference < TOLERANCES["bfloat16"]
    exported, own, wide = (
        sft_jax.load(tmp_path / name).logits(IMAGES) for name in ("file.stablehlo", "bfloat16", "float32")
    )
    assert relative_difference(exported, own) < relative_difference(exported, wide) < TOLERANCES["bfloat16"]
