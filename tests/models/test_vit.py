"""Compares vision transformers with torchvision's and timm's: activations, gradients, image sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from timm.layers import resample_abs_pos_embed
from tiny_vit import CLASSES, SIZE, VARIANTS, architecture, build, moved

from convert import keys, parity
from convert.vit import VitReference
from sft_jax import models
from sft_jax.config import complete
from sft_jax.errors import UserError
from sft_jax.models import ARCHITECTURES, Network
from sft_jax.models.architecture import HEAD_DEPTH, Builder
from sft_jax.models.positions import Positions, resample
from sft_jax.tasks.losses import cross_entropy

ALL = [*VARIANTS, "torchvision"]


def torch_network(name, **changes):
    return moved(build(name, **changes))


def network(name, size=SIZE, **settings):
    return Network.abstract(Builder(architecture(name), CLASSES, {"size": size, **settings}))


def images(size=SIZE, dtype=np.float32):
    return np.random.default_rng(size).standard_normal((4, size, size, 3)).astype(dtype)


def assert_close(actual, wanted, tolerance):
    """Asserts that all arrays agree to `tolerance` relative to their largest value."""
    assert actual.keys() == wanted.keys()
    errors = {key: np.abs(np.asarray(actual[key]) - wanted[key]).max() / np.abs(wanted[key]).max() for key in wanted}
    worst = max(errors, key=lambda key: np.nan_to_num(errors[key], nan=np.inf))
    assert errors[worst] <= tolerance, f"{worst} is off by {errors[worst]:.1e}"


@pytest.mark.parametrize("name", ALL)
def test_every_stage_agrees_with_the_reference(name):
    module, ours = torch_network(name), network(name)
    state_dict = module.state_dict()
    assert {keys.torch_key(key, ours.architecture) for key in ours.params} == state_dict.keys()
    arrays = keys.to_flax(state_dict, ours)
    theirs, their_logits = parity.torch_activations(module, (images(),), VitReference())
    stages, logits = parity.flax_activations(ours, arrays, (images(),))
    assert len(stages) == 3
    assert_close(stages | {"logits": logits}, theirs | {"logits": their_logits}, 1e-5)
    back = keys.to_torch(arrays, ours.architecture)
    assert all(torch.equal(back[key], tensor) for key, tensor in state_dict.items())


@pytest.mark.parametrize("name", ["plain", "plain_avg", "registers", "torchvision"])
def test_gradients_agree_in_float64(name):
    module, labels = torch_network(name).double(), np.array([0, 3, 1, 4])
    with jax.enable_x64():
        ours = network(name, dtype=jnp.float64)
        params = keys.to_flax(module.state_dict(), ours)

        @jax.jit
        @jax.grad
        def gradients_of(params):
            logits, _ = ours.apply(params, {}, jnp.asarray(images(dtype=np.float64)), train=True)
            return cross_entropy(logits, labels).mean()

        gradients = jax.device_get(gradients_of(params))
    inputs = torch.from_numpy(images(dtype=np.float64)).permute(0, 3, 1, 2)
    torch.nn.functional.cross_entropy(module(inputs), torch.from_numpy(labels)).backward()
    theirs = {key: parameter.grad for key, parameter in module.named_parameters()}
    assert_close(gradients, keys.to_flax(theirs, ours), 1e-9)


@pytest.mark.long
@pytest.mark.parametrize("name", ["plain", "registers"])
def test_images_of_another_size_match_timm(name):
    """With embeddings that are resampled once, and with those that are resampled in every step."""
    module, small, large = torch_network(name, dynamic_img_size=True), network(name), network(name, 24)
    arrays = keys.to_flax(module.state_dict(), small)
    with torch.no_grad():
        wanted = module(torch.from_numpy(images(24)).permute(0, 3, 1, 2)).numpy()
    resampled, said = small.architecture.for_size(arrays, 24)
    assert said == "; position embeddings resampled from 4x4 patches (16 px) to 6x6 (24 px)"
    for each, weights in ((small, arrays), (large, resampled)):
        logits, _ = each.apply(weights, {}, jnp.asarray(images(24)), train=False)
        assert_close({"logits": logits}, {"logits": wanted}, 1e-5)
    assert small.architecture.for_size(arrays, 16) == (arrays, "")


@pytest.mark.parametrize(("old", "new", "prefix"), [(14, 7, 1), (14, 24, 1), (37, 16, 0), (14, 15, 5), (7, 2, 1)])
def test_position_embeddings_are_resampled_as_in_timm(old, new, prefix):
    positions = np.random.default_rng(0).standard_normal((1, prefix + old * old, 6), np.float32)
    wanted = resample_abs_pos_embed(torch.from_numpy(positions), [new, new], num_prefix_tokens=prefix).numpy()
    np.testing.assert_allclose(resample(positions, new, new, prefix), wanted, atol=5e-6)


def test_a_size_that_patches_do_not_tile_is_refused():
    message = "config.data.size=100 is not a multiple of 16 px, the side of the network's patches; use 96 or 112"
    with pytest.raises(UserError, match=f"^{message}$"):
        models.builder(complete({"model.name": "vit_tiny_patch16_224"}).model, CLASSES, size=100)
    with pytest.raises(UserError, match=r"data\.size=10 .*; use 16$"):
        Positions("pos_embed", 16, 1).check(10)


def test_positions_that_are_not_a_square_fit_no_size():
    positions = Positions("pos_embed", 4, 1)
    arrays = {"pos_embed": np.zeros((1, 12, 24), np.float32)}
    assert positions.size_of(arrays) is None
    assert positions.size_of({}) is None
    assert positions.resampled(arrays, 16) == (arrays, "")


@pytest.mark.long
def test_branches_are_skipped_as_in_timm():
    """The first block is never skipped; a skipped branch adds nothing, and the others are scaled."""
    ours = network("plain", stochastic_depth=0.5)
    params = keys.to_flax(torch_network("plain").state_dict(), ours)

    @functools.partial(jax.jit, static_argnums=0)
    def stages(key):
        model = ours.bind(params, {})
        return dict(model.stages(jnp.asarray(images()), key=None if key is None else jax.random.key(key)))

    whole = stages(None)
    seen = [stages(seed) for seed in range(8)]
    kept = np.array([[np.array_equal(a, b) for a, b in zip(x["blocks.1"], x["blocks.0"], strict=True)] for x in seen])
    for each in seen:
        np.testing.assert_array_equal(each["blocks.0"], whole["blocks.0"])
    assert 0.05 < kept.mean() < 0.5  # both branches, with probability 1/4


def test_depth_decay_and_muon_follow_the_architecture():
    for name in ("vit_small_patch14_reg4_dinov2", "vit_b_16"):
        known = ARCHITECTURES[name]
        net = Network.abstract(models.builder(complete({"model.name": name}).model, CLASSES, size=112))
        depths = {key: known.depth(key) for key in net.params}
        assert sorted(set(depths.values())) == [*((stage, 0) for stage in range(13)), HEAD_DEPTH]
        assert depths[known.positions.name] == (0, 0)
        decaying = [key for key in net.params if known.decays(key)]
        assert all(len(net.params[key].shape) in (2, 4) for key in decaying)
        assert len(decaying) == 1 + 4 * 12 + 1
        muon = {key: known.matrix_axes(key, len(leaf.shape)) for key, leaf in net.params.items()}
        assert {key for key, axes in muon.items() if axes} == set(decaying) - {f"{known.head}.kernel"}


def test_preprocessing_is_that_of_the_published_weights():
    settings = ARCHITECTURES["vit_small_patch16_224"].pretrained
    assert (settings.size, settings.resize, settings.interpolation, settings.mean, settings.std) == (
        (224, 248, "bicubic") + ((0.5, 0.5, 0.5),) * 2
    )
    settings = ARCHITECTURES["vit_small_patch14_dinov2"].pretrained
    assert (settings.size, settings.resize, settings.interpolation, settings.mean[0]) == (518, 518, "bicubic", 0.485)


@pytest.mark.long
def test_bfloat16_is_close_to_float32():
    params = keys.to_flax(torch_network("registers").state_dict(), network("registers"))

    def run(dtype):
        ours = network("registers", dtype=jnp.dtype(dtype))

        @jax.jit
        @functools.partial(jax.value_and_grad, has_aux=True)
        def loss(params):
            logits, _ = ours.apply(params, {}, jnp.asarray(images()), train=True)
            return jnp.square(logits).mean(), logits

        (_, logits), gradients = loss(params)
        return logits, gradients

    (logits, gradients), (wanted, wanted_gradients) = run("bfloat16"), run("float32")
    assert all(leaf.dtype == jnp.float32 for leaf in (logits, *gradients.values()))
    assert_close({"logits": logits}, {"logits": np.asarray(wanted)}, 5e-2)
    norms = [
        float(jnp.linalg.norm(gradients[key] - each) / jnp.linalg.norm(each)) for key, each in wanted_gradients.items()
    ]
    assert np.median(norms) < 5e-2
    assert 0 < max(norms) < 0.5
