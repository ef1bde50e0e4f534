"""Compares the layers with formulas and torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from sft_jax.models.layers import Linear


@pytest.mark.long
@pytest.mark.parametrize(("inputs", "outputs"), [(512, 10), (2048, 1000), (3, 1)])
def test_a_linear_layer_is_drawn_and_computed_as_in_earlier_versions(inputs, outputs):
    """A seed gives the same head, bit by bit, in every version."""
    layer, keys, bound = Linear(inputs, outputs, rngs=nnx.Rngs(params=7)), nnx.Rngs(params=7), inputs**-0.5
    kernel = jax.random.uniform(keys.params(), (inputs, outputs), minval=-bound, maxval=bound)
    bias = jax.random.uniform(keys.params(), (outputs,), minval=-bound, maxval=bound)
    np.testing.assert_array_equal(layer.kernel[...], kernel, strict=True)
    np.testing.assert_array_equal(layer.bias[...], bias, strict=True)
    x = jax.random.normal(keys.params(), (9, inputs))
    np.testing.assert_array_equal(layer(x), jnp.matmul(x, kernel, precision="highest") + bias[None], strict=True)


def test_a_linear_layer_matches_torch():
    layer, theirs = Linear(64, 5, rngs=nnx.Rngs(params=0)), torch.nn.Linear(64, 5)
    bound = max(float(leaf.detach().abs().max()) for leaf in theirs.parameters())
    assert float(jnp.abs(layer.kernel[...]).max()) == pytest.approx(bound, rel=0.05)
    theirs.load_state_dict(
        {"weight": torch.tensor(np.array(layer.kernel[...].T)), "bias": torch.tensor(np.array(layer.bias[...]))}
    )
    x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(layer(jnp.asarray(x)), theirs(torch.from_numpy(x)), rtol=1e-5, atol=1e-6)


def test_accelerators_multiply_in_full_float32():
    """Their default precision is bfloat16 or TF32."""
    structure, state = nnx.split(Linear(4, 3, rngs=nnx.Rngs(params=0)))
    program = jax.jit(lambda state, x: nnx.merge(structure, state)(x)).lower(state, jnp.zeros((2, 4))).as_text()
    assert "precision = [HIGHEST, HIGHEST]" in program
