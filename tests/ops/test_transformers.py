"""Compares the operations of transformers and their gradients with torch and jax.nn in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sft_jax import ops
from sft_jax.models.dropout import Dropout
from sft_jax.ops import long_attention
from sft_jax.ops.scores import Drop

TOKENS, HEADS, D = 5, 3, 8
ROWS = 4 * TOKENS
# Texts of 5, 3, 1 and 4 tokens.
MASK = np.arange(TOKENS)[None] < np.array([5, 3, 1, 4])[:, None]
# Which tokens are at most 2 apart, so that none sees padding alone where texts have at least 3.
NEAR = np.abs(np.arange(TOKENS)[:, None] - np.arange(TOKENS)) <= 2
LONGER = np.maximum(MASK, np.arange(TOKENS)[None] < 3)
# Relative to the largest value of each array.
TOLERANCES = {"float64": 1e-12, "float32": 2e-6, "bfloat16": 3e-2}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def attention(qkv, mask=None):
    q, k, v = qkv.reshape(-1, TOKENS, 3, HEADS, D).permute(2, 0, 3, 1, 4)
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
    return mixed.transpose(1, 2).reshape(ROWS, HEADS * D)


KEPT = np.random.default_rng(0).random((4 * HEADS, TOKENS, TOKENS)) < 0.75
DROP = Drop(
    lambda shape, part: jnp.pad(KEPT, [(0, more - own) for own, more in zip(KEPT.shape, shape, strict=True)]), 4 / 3
)


def dropped_attention(qkv, mask):
    """torch's `multi_head_attention_forward`, with the numbers that are dropped given."""
    q, k, v = qkv.reshape(-1, TOKENS, 3, HEADS, D).permute(2, 0, 3, 1, 4)
    scores = (q @ k.mT * D**-0.5).masked_fill(~mask, -torch.inf)
    weights = scores.softmax(-1) * torch.from_numpy(KEPT).reshape(scores.shape) * (4 / 3)
    return (weights @ v).transpose(1, 2).reshape(ROWS, HEADS * D)


# Ours, torch's, and the shapes of their arguments.
CASES = {
    "attention": (
        functools.partial(ops.self_attention, tokens=TOKENS, heads=HEADS), attention, [(ROWS, 3 * HEADS * D)]
    ),
    "masked attention": (
        functools.partial(ops.self_attention, tokens=TOKENS, heads=HEADS, mask=jnp.asarray(MASK)),
        lambda qkv: attention(qkv, torch.from_numpy(MASK)[:, None, None, :]),
        [(ROWS, 3 * HEADS * D)],
    ),
    "local attention": (
        functools.partial(ops.self_attention, tokens=TOKENS, heads=HEADS, window=2),
        lambda qkv: attention(qkv, torch.from_numpy(NEAR)),
        [(ROWS, 3 * HEADS * D)],
    ),
    "masked local attention": (
        functools.partial(ops.self_attention, tokens=TOKENS, heads=HEADS, mask=jnp.asarray(LONGER), window=2),
        lambda qkv: attention(qkv, torch.from_numpy(LONGER[:, None, None, :] & NEAR)),
        [(ROWS, 3 * HEADS * D)],
    ),
    "dropped attention": (
        functools.partial(ops.self_attention, tokens=TOKENS, heads=HEADS, mask=jnp.asarray(MASK), drop=DROP),
        lambda qkv: dropped_attention(qkv, torch.from_numpy(MASK)[:, None, None, :]),
        [(ROWS, 3 * HEADS * D)],
    ),
    "layer_norm": (
        functools.partial(ops.layer_norm, epsilon=1e-6),
        lambda x, scale, bias: torch.nn.functional.layer_norm(x, (24,), scale, bias, 1e-6),
        [(ROWS, 24), (24,), (24,)],
    ),
    "layer_norm without bias": (
        functools.partial(ops.layer_norm, bias=None, epsilon=1e-5),
        lambda x, scale: torch.nn.functional.layer_norm(x, (24,), scale, None, 1e-5),
        [(ROWS, 24), (24,)],
    ),
    "gelu": (ops.gelu, torch.nn.functional.gelu, [(ROWS, 24)]),
    "dense": (ops.dense, lambda x, kernel, bias: x @ kernel + bias, [(ROWS, 24), (24, 7), (7,)]),
}  # fmt: skip


def both(name, dtype):
    """Returns the result and the gradients of a weighted sum of it, in ours with `dtype` and in torch with float64."""
    ours, theirs, shapes = CASES[name]
    arguments = [2 * normal(*shape, seed=seed) + 0.5 for seed, shape in enumerate(shapes)]
    tensors = [torch.tensor(argument, requires_grad=True) for argument in arguments]
    wanted = theirs(*tensors)
    weight = normal(*wanted.shape, seed=9)
    wanted.backward(torch.from_numpy(weight))
    # Parameters stay in float32.
    kinds = [dtype, *["float32" if dtype == "bfloat16" else dtype] * 2]
    given = [jnp.asarray(argument, kind) for argument, kind in zip(arguments, kinds, strict=False)]

    @jax.jit
    def run(*given):
        result, pull = jax.vjp(ours, *given)
        return result, pull(jnp.asarray(weight, result.dtype))

    result, gradients = run(*given)
    assert result.dtype == given[0].dtype
    assert [gradient.dtype for gradient in gradients] == [argument.dtype for argument in given]
    return [result, *gradients], [wanted.detach(), *(tensor.grad for tensor in tensors)]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_match_torch(name, dtype):
    if name.startswith("layer_norm") and dtype == "bfloat16":
        pytest.skip("the residual stream is float32 or wider")
    with jax.enable_x64():
        actual, wanted = both(name, dtype)
    for ours, theirs in zip(actual, wanted, strict=True):
        error = np.abs(np.asarray(ours, np.float64) - theirs.numpy()).max() / np.abs(theirs.numpy()).max()
        assert error < TOLERANCES[dtype]


def test_gelu_is_accurate_far_from_zero():
    """erf of jax 0.8 stays 2e-7 below 1."""
    x = jnp.float32([-12, -6, -4, 0, 4, 12])
    with jax.enable_x64():
        slope = jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=False)))(jnp.asarray(x, jnp.float64))
    np.testing.assert_allclose(jax.vmap(jax.grad(ops.gelu))(x), slope, rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(ops.gelu(x), jax.nn.gelu(x, approximate=False), rtol=1e-6, atol=2e-6)


def test_large_scores_do_not_overflow():
    qkv = jnp.asarray(1e3 * normal(ROWS, 3 * HEADS * D), jnp.float32)
    result, pull = jax.vjp(lambda qkv: ops.self_attention(qkv, TOKENS, HEADS), qkv)
    assert np.isfinite(result).all()
    assert np.isfinite(pull(result)[0]).all()


@pytest.mark.parametrize("name", [name for name in CASES if name != "dense"])
def test_operations_under_vmap_equal_those_of_one_network(name):
    """The search trains several networks in one program, by vmap."""
    ours, _, shapes = CASES[name]
    arguments = [jnp.asarray(normal(2, *shape, seed=seed), jnp.float32) for seed, shape in enumerate(shapes)]

    def gradients(*given):
        return jax.grad(lambda *given: jnp.square(ours(*given)).sum(), range(len(shapes)))(*given)

    together = jax.jit(jax.vmap(gradients))(*arguments)
    for index in range(2):
        alone = jax.jit(gradients)(*(argument[index] for argument in arguments))
        for each, wanted in zip(together, alone, strict=True):
            np.testing.assert_allclose(each[index], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [None, 1])
def test_an_example_of_padding_alone_gives_no_nan(window):
    """The last batch of an evaluation is filled with such examples."""
    qkv, mask = jnp.asarray(normal(ROWS, 3 * HEADS * D), jnp.float32), jnp.zeros((4, TOKENS), bool)
    result, pull = jax.vjp(lambda qkv: ops.self_attention(qkv, TOKENS, HEADS, mask=mask, window=window), qkv)
    assert np.isfinite(result).all()
    assert np.isfinite(pull(result)[0]).all()


@pytest.mark.long
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("window", "tokens"), [(None, 23), (3, 23), (4, 24), (30, 23)])
def test_long_texts_give_the_same_in_blocks_and_parts(window, tokens, dtype, monkeypatch):
    """Also where padding sees no token; no gradient comes from there."""
    mask = jnp.arange(tokens)[None] < jnp.array([tokens, 9, 1, 0])[:, None]
    found = []
    with jax.enable_x64():
        qkv = jnp.asarray(normal(4 * tokens, 3 * HEADS * D), dtype)
        weight = jnp.asarray(normal(4 * tokens, HEADS * D, seed=1) * np.asarray(mask).reshape(-1, 1), dtype)
        for limit in (1000, 0):
            monkeypatch.setattr(long_attention, "WHOLE", limit)
            monkeypatch.setattr(long_attention, "WINDOWS", limit)
            monkeypatch.setattr(long_attention, "PART", 5)
            result, pull = jax.vjp(lambda qkv: ops.self_attention(qkv, tokens, HEADS, mask=mask, window=window), qkv)
            found.append((result, *pull(weight)))
            assert all(each.dtype == qkv.dtype for each in found[-1])
    for each, wanted in zip(*found, strict=True):
        each, wanted = (np.asarray(array, np.float64) for array in (each, wanted))
        assert np.abs(each - wanted).max() < TOLERANCES[dtype] * np.abs(wanted).max()


@pytest.mark.parametrize(("window", "tokens"), [(None, 6), (2, 12), (None, 12)], ids=["whole", "blocks", "parts"])
def test_attention_weights_are_dropped_independently_of_each_other(window, tokens, monkeypatch):
    """Values that tell the tokens apart show the weights. Of the first text some are padding."""
    monkeypatch.setattr(long_attention, "WHOLE", 8)
    monkeypatch.setattr(long_attention, "PART", 4)
    mask = jnp.arange(tokens)[None] < jnp.array([tokens - 2] + [tokens] * 63)[:, None]
    q, k = normal(2, 64 * tokens, HEADS * tokens)
    v = np.tile(np.eye(tokens), (64, HEADS))
    qkv = jnp.asarray(np.concatenate([q, k, v], axis=1), jnp.float32)

    def weights(dropout):
        drop = dropout.of_attention(64)
        rows = ops.self_attention(qkv, tokens, HEADS, mask=mask, window=window, drop=drop)
        return np.asarray(rows).reshape(64, tokens, HEADS, tokens)

    dropout = Dropout(0.0, jax.random.key(0), None, attention=0.25)
    whole, first, second = weights(Dropout(0.5, None, None, attention=0.5)), weights(dropout), weights(dropout)
    for each in (first, second):
        np.testing.assert_allclose(each, np.where(each == 0, 0, whole * 4 / 3), rtol=1e-5)
    seen = whole > 0
    zeros = [(each == 0)[seen] for each in (first, second)]
    assert np.mean(zeros) == pytest.approx(0.25, abs=0.01)
    assert np.corrcoef(*zeros)[0, 1] == pytest.approx(0, abs=0.03), "every layer draws anew"
    pairs = [(slice(None), slice(None), 0), (slice(None), slice(None), 1)], [(slice(32),), (slice(32, 64),)]
    pairs += ([(slice(None), slice(4)), (slice(None), slice(-4, None))],) if window is None else ()
    for one, other in pairs:  # heads, texts, and the queries of the first and the last part
        both = seen[one] & seen[other]
        assert np.corrcoef((first == 0)[one][both], (first == 0)[other][both])[0, 1] == pytest.approx(0, abs=0.1)


def test_the_memory_of_long_texts_grows_as_their_length():
    def temporary(tokens, window):
        def loss(qkv, mask):
            return jnp.square(ops.self_attention(qkv, tokens, 2, mask=mask, window=window)).sum()

        shapes = jax.ShapeDtypeStruct((tokens, 3 * 2 * 16), jnp.float32), jax.ShapeDtypeStruct((1, tokens), bool)
        return jax.jit(jax.grad(loss)).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    for window in (64, None):
        assert temporary(8192, window) < 2.2 * temporary(4096, window)
        assert temporary(8192, window) < 0.25 * 2 * 8192**2 * 4, "a quarter of one array of all scores"
