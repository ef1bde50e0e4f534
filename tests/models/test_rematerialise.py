"""Rematerialised blocks give the same loss, gradients and statistics; they are marked for XLA to compute again."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_runs import TINY_VARIANT

from sft_jax import models
from sft_jax.config import complete
from sft_jax.errors import UserError
from sft_jax.models import convnext, resnet
from sft_jax.models.architecture import Builder
from sft_jax.tasks.classification import Classification
from sft_jax.training.state import TrainState
from sft_jax.training.step import make_train_step

SIZE = 32
NARROW = convnext.Variant((1, 1, 2, 1), (8, 8, 16, 16))


@pytest.fixture(autouse=True)
def families(monkeypatch):
    """A small network of each family that is not registered yet."""
    monkeypatch.setitem(models.ARCHITECTURES, "convnext", convnext._architecture("convnext_tiny", NARROW))


def steps(name):
    """Returns the training steps with and without rematerialisation, and their arguments as shapes."""
    config = complete({"model.name": name, "data.size": SIZE}).model
    task, optimizer = Classification(("a", "b", "c")), optax.sgd(0.1)
    programs = []
    for rematerialise in (False, True):
        build = models.builder(config, 3, size=SIZE, rematerialise=rematerialise, stochastic_depth=0.2)
        network = models.Network.abstract(build)
        programs.append(jax.jit(make_train_step(network, task, optimizer)))
    state = jax.eval_shape(lambda *arrays: TrainState.create(*arrays, optimizer), network.params, network.batch_stats)
    batch = {
        "image": jax.ShapeDtypeStruct((4, SIZE, SIZE, 3), np.float32),
        "label": jax.ShapeDtypeStruct((4,), np.int32),
    }
    return programs, (state, batch, jax.eval_shape(jax.random.key, 0))


@pytest.mark.long
@pytest.mark.parametrize("name", ["tiny", pytest.param("convnext", marks=pytest.mark.slow)])
def test_the_step_is_the_same(name):
    programs, shapes = steps(name)
    random = np.random.default_rng(0)

    def drawn(shape):
        if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if jnp.issubdtype(shape.dtype, jnp.integer):
            return jnp.ones(shape.shape, shape.dtype)
        return jnp.asarray(random.uniform(0.1, 1, shape.shape), shape.dtype)

    arguments = jax.tree.map(drawn, shapes)
    wanted, actual = (jax.tree.leaves(program(*arguments)) for program in programs)
    for plain, rematerialised in zip(wanted, actual, strict=True):
        np.testing.assert_allclose(rematerialised, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "tiny",
        "convnext",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("efficientnet_lite0", "vit_tiny_patch16_224", "regnet_y_400mf", "swin_t", "swin_v2_t")
        ),
    ],
)
def test_every_block_is_computed_again(name):
    programs, shapes = steps(name)
    plain, rematerialised = (str(program.trace(*shapes).jaxpr).count("differentiated=True") for program in programs)
    names = (re.match(r"(.*blocks\.\d+\.|.*layer\d\.|s\d\.b\d)", key) for key in shapes[0].params)
    inside = {models.ARCHITECTURES[name].locate(match.string) for match in names if match}
    assert (plain, rematerialised) == (0, len(inside))


def test_a_network_without_blocks_is_refused():
    architecture = resnet.architecture("plain", TINY_VARIANT)

    class Plain(resnet.nnx.Module):
        pass

    build = Builder(
        architecture.__class__(**{**vars(architecture), "make": lambda *_, **__: Plain()}), 3, {}, rematerialise=True
    )
    with pytest.raises(UserError, match="finetune.rematerialise=blocks: plain has no blocks; use none"):
        models.Network.abstract(build)
