"""Compares convolution, pooling and normalisation with torch: values and gradients, convolutions in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

from sft_jax import ops
from sft_jax.models.layers import BatchNorm2d
from sft_jax.ops import conv, depthwise
from sft_jax.ops.conv import conv_patch_gradient
from sft_jax.ops.im2col import conv_im2col, conv_patches, live_taps
from sft_jax.ops.norm import _one_pass
from sft_jax.ops.winograd import conv_winograd
from sft_jax.ops.winograd_tiles import conv_winograd_tiles

# Every example compiles two programs.
few = functools.partial(settings, deadline=None, derandomize=True)

# Relative to the largest value: the order of float32 sums differs and Winograd loses a digit; bfloat16 has 8 bits.
TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 1e-2}


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(function, dy, *arguments):
    """Returns the value of `function`, and the cotangents of its arguments for the cotangent `dy` of the result."""
    y, pull = jax.vjp(function, *arguments)
    return y, *pull(dy)


def assert_close(actual, wanted, tolerance):
    """Compares to `tolerance`, relative to the largest value."""
    actual, wanted = np.asarray(actual).astype(np.float64), np.asarray(wanted).astype(np.float64)
    assert actual.shape == wanted.shape
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def torch_of(array):
    """Converts NHWC numpy -> NCHW torch, a leaf that requires a gradient."""
    return torch.from_numpy(np.moveaxis(np.asarray(array), -1, 1).copy()).requires_grad_()


def nhwc(tensor):
    return np.moveaxis(tensor.detach().numpy(), 1, -1)


def check_conv(convolve, image, kernel_shape, dtype="float64", *, batch=2, layout="HWNC", **window):
    """Checks `convolve`, a function of x in `layout` and the kernel, against torch's convolution in float64."""
    axes = {"NHWC": (0, 1, 2, 3), "HWNC": (2, 0, 1, 3)}[layout]

    def ours(x, kernel):
        return convolve(x.transpose(np.argsort(axes)), kernel).transpose(axes)

    generator = np.random.default_rng(1)
    with jax.enable_x64():
        # Rounded to the dtype first, so that both sides see the same values.
        def draw(shape):
            return jnp.asarray(generator.standard_normal(shape), dtype)

        x, kernel = draw((batch, *image, kernel_shape[2] * window.get("groups", 1))), draw(kernel_shape)
        their_x = torch_of(x.astype(jnp.float64))
        their_kernel = torch.from_numpy(np.array(kernel, np.float64)).requires_grad_()
        their_y = torch.nn.functional.conv2d(their_x, their_kernel.permute(3, 2, 0, 1), **window)
        dy = draw(nhwc(their_y).shape)
        their_y.backward(torch_of(dy.astype(jnp.float64)))
        results = value_and_gradients(ours, dy, x, kernel)
        wanted = nhwc(their_y), nhwc(their_x.grad), their_kernel.grad.numpy()
        for name, one, other in zip(("y", "dx", "dkernel"), results, wanted, strict=True):
            assert one.dtype == dtype, name
            assert_close(one, other, TOLERANCES[dtype])


def im2col(x, kernel, *, stride, padding):
    return conv_im2col(x, kernel, stride, padding)  # custom_vjp functions take positional arguments


def patches(x, kernel, *, stride, padding):
    return conv_patches(x, kernel, stride, padding)


sides = st.integers(1, 9)
channels = st.sampled_from([1, 3, 5, 8])
windows = st.fixed_dictionaries({"stride": st.integers(1, 3), "padding": st.integers(0, 3)})


@few(max_examples=20)
@given(st.tuples(sides, sides), st.tuples(st.integers(1, 4), st.integers(1, 4)), channels, channels, windows)
def test_im2col(image, kernel, inputs, outputs, window):
    for size, taps in zip(image, kernel, strict=True):
        assume(size + 2 * window["padding"] >= taps)
        assume(live_taps(size, taps, **window))
    check_conv(functools.partial(im2col, **window), image, (*kernel, inputs, outputs), **window)
    check_conv(functools.partial(patches, **window), image, (*kernel, inputs, outputs), layout="NHWC", **window)


@few(max_examples=15)
@given(st.integers(2, 17), st.integers(2, 17), channels, channels, st.integers(1, 3))
def test_winograd(height, width, inputs, outputs, batch):
    check_conv(conv_winograd, (height, width), (3, 3, inputs, outputs), batch=batch, padding=1)


shapes = given(st.integers(1, 17), st.integers(1, 17), channels, channels, st.integers(1, 3))


@few(max_examples=4)
@shapes
def test_winograd_tiles(height, width, inputs, outputs, batch):
    check_conv(conv_winograd_tiles, (height, width), (3, 3, inputs, outputs), batch=batch, padding=1)


@pytest.mark.slow
@few(max_examples=30)
@shapes
def test_winograd_tiles_of_many_shapes(height, width, inputs, outputs, batch):
    """Each shape is a separate program, which takes two seconds."""
    check_conv(conv_winograd_tiles, (height, width), (3, 3, inputs, outputs), batch=batch, padding=1)


@pytest.mark.parametrize(
    ("side", "batch", "channels", "lowering"),
    [
        (1, 100, 512, "_im2col"),
        (2, 100, 256, "conv_winograd"),
        (2, 512, 512, "conv_winograd"),
        (8, 100, 64, "conv_winograd"),
        (7, 32, 512, "conv_winograd_tiles"),
        (56, 32, 64, "conv_winograd_tiles"),
        (56, 1, 64, "conv_winograd_tiles"),
        (28, 1, 64, "conv_winograd"),
    ],
)
def test_the_shapes_determine_the_lowering(side, batch, channels, lowering):
    x = jax.ShapeDtypeStruct((side, side, batch, channels), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, channels, channels), jnp.float32)
    chosen = conv._cpu_lowering(x, kernel, 1, 1, 1, "HWNC")
    assert getattr(chosen, "func", chosen).__name__ == lowering


@pytest.mark.parametrize("limit", [1, 40_000, 10**9])
def test_patches_are_computed_for_a_few_images_at_a_time(monkeypatch, limit):
    monkeypatch.setattr(conv, "PATCH_BYTES", limit)
    convolve = functools.partial(conv_patch_gradient, stride=2, padding=3)
    check_conv(convolve, (12, 13), (7, 7, 3, 4), batch=6, layout="NHWC", stride=2, padding=3)


@few(max_examples=15)
@given(st.integers(7, 20), st.integers(7, 20), st.integers(1, 7), channels, windows)
def test_patch_gradient(height, width, taps, inputs, window):
    """Square kernels only: XLA (jax 0.10.2) aborts compiling the input gradient of some others, such as 7x2."""
    convolve = functools.partial(conv_patch_gradient, **window)
    check_conv(convolve, (height, width), (taps, taps, inputs, 4), layout="NHWC", **window)


@few(max_examples=8)
@given(
    st.tuples(sides, sides),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    windows,
    st.sampled_from(sorted(depthwise.AXES)),
)
def test_depthwise(image, kernel, window, layout):
    """Images may be smaller than the kernel, so that no window lies inside."""
    for size, taps in zip(image, kernel, strict=True):
        assume(size + 2 * window["padding"] >= taps)
    convolve = functools.partial(conv._depthwise, layout=layout, **window)
    check_conv(convolve, image, (*kernel, 1, 4), layout=layout, groups=4, **window)


@pytest.mark.parametrize("layout", depthwise.AXES)
def test_depthwise_gradients_are_computed_for_a_few_images_and_columns_at_a_time(monkeypatch, layout):
    monkeypatch.setattr(depthwise, "BLOCK_BYTES", 1500)
    monkeypatch.setattr(depthwise, "COLUMNS", 2)
    convolve = functools.partial(conv._depthwise, stride=2, padding=2, layout=layout)
    check_conv(convolve, (7, 9), (5, 5, 1, 4), batch=6, layout=layout, stride=2, padding=2, groups=4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("side", "taps", "stride"), [(9, 3, 1), (8, 3, 2), (7, 5, 2), (2, 7, 1)])
def test_conv2d_with_one_group_per_channel(side, taps, stride, dtype):
    window = {"stride": stride, "padding": taps // 2, "groups": 32}
    for layout in depthwise.AXES:
        convolve = functools.partial(ops.conv2d, layout=layout, **window)
        check_conv(convolve, (side, side), (taps, taps, 1, 32), dtype, batch=5, layout=layout, **window)


# The layers of residual networks, each also at the size where its lowering changes: image, kernel, window.
LAYERS = {
    "stem": (33, (7, 7, 3, 64), {"stride": 2, "padding": 3, "layout": "NHWC"}),
    "cifar stem": (16, (7, 7, 3, 64), {"padding": 3, "layout": "NHWC"}),
    "cifar3x3 stem": (16, (3, 3, 3, 64), {"padding": 1, "layout": "NHWC"}),
    "layer1": (8, (3, 3, 64, 64), {"padding": 1}),
    "layer1 odd": (9, (3, 3, 64, 64), {"padding": 1}),
    "layer1 large": (18, (3, 3, 64, 64), {"padding": 1}),
    "layer1 at 224": (30, (3, 3, 64, 64), {"padding": 1}),
    "layer2": (4, (3, 3, 128, 128), {"padding": 1}),
    "layer3": (2, (3, 3, 256, 256), {"padding": 1}),
    "layer4": (1, (3, 3, 256, 256), {"padding": 1}),
    "stride": (8, (3, 3, 64, 128), {"stride": 2, "padding": 1}),
    "stride odd": (7, (3, 3, 64, 128), {"stride": 2, "padding": 1}),
    "stride to one pixel": (2, (3, 3, 64, 64), {"stride": 2, "padding": 1}),
    "shortcut": (7, (1, 1, 64, 128), {"stride": 2}),
    "bottleneck": (4, (1, 1, 128, 32), {}),
    "groups": (5, (3, 3, 4, 64), {"stride": 2, "padding": 1, "groups": 16}),
    "depthwise": (5, (3, 3, 1, 16), {"stride": 2, "padding": 1, "groups": 16}),
    "taps apart": (1, (3, 3, 4, 4), {"stride": 2, "padding": 2}),
    "odd channels": (6, (3, 3, 7, 13), {"padding": 1}),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layer", LAYERS)
def test_conv2d_at_the_shapes_of_residual_networks(layer, dtype):
    side, kernel, settings = LAYERS[layer]
    window = {key: value for key, value in settings.items() if key != "layout"}
    layout = settings.get("layout", "HWNC")
    convolve = functools.partial(ops.conv2d, layout=layout, **window)
    check_conv(convolve, (side, side), kernel, dtype, batch=5, layout=layout, **window)


@few(max_examples=20)
@given(st.tuples(sides, sides), st.integers(1, 4), channels, channels, st.sampled_from([1, 2, 3]), windows)
def test_conv2d_of_any_shape(image, taps, inputs, outputs, groups, window):
    assume(min(image) + 2 * window["padding"] >= taps)
    convolve = functools.partial(ops.conv2d, layout="HWNC", groups=groups, **window)
    check_conv(convolve, image, (taps, taps, inputs, groups * outputs), groups=groups, **window)


@pytest.mark.parametrize("layer", ["layer1", "layer4", "stride", "shortcut"])
def test_a_cpu_computes_small_convolutions_as_matrix_products(layer):
    side, kernel, window = LAYERS[layer]
    x, weights = jnp.ones((side, side, 2, kernel[2])), jnp.ones(kernel)

    def loss(x, weights, layout):
        return ops.conv2d(x, weights, layout=layout, **window).sum()

    def program(layout):
        return jax.jit(jax.grad(loss, (0, 1)), static_argnums=2).lower(x, weights, layout).as_text()

    assert "stablehlo.dot_general" in program("HWNC")
    assert "stablehlo.convolution" not in program("HWNC")
    assert "stablehlo.convolution" in program("NHWC")


def test_pointwise_convolutions_with_the_images_first():
    generator = np.random.default_rng(0)
    x, kernel = generator.standard_normal((3, 5, 4, 6)), generator.standard_normal((1, 1, 6, 8))
    dy = generator.standard_normal((3, 5, 4, 8))
    with jax.enable_x64(True):
        ours = value_and_gradients(ops.conv2d, dy, x, kernel)
        theirs = value_and_gradients(functools.partial(conv.conv_xla, stride=1, padding=0), dy, x, kernel)
    for actual, wanted in zip(ours, theirs, strict=True):
        assert_close(actual, wanted, 1e-12)


def test_only_a_cpu_computes_depthwise_convolutions_as_sums():
    x, kernel = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 1, 16))
    program = jax.jit(functools.partial(ops.conv2d, padding=1, groups=16))
    assert "stablehlo.convolution" not in program.trace(x, kernel).lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.convolution" in program.trace(x, kernel).lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize(
    ("side", "taps", "stride", "is_product"),
    [(2, 3, 1, True), (1, 3, 1, True), (4, 3, 2, True), (2, 1, 2, True), (4, 3, 1, False), (4, 1, 2, False)],
)
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_an_nvidia_gpu_multiplies_where_the_kernel_is_larger_than_the_map(side, taps, stride, is_product, platform):
    x = jax.ShapeDtypeStruct((side, side, 2, 8), jnp.float32)
    kernel = jax.ShapeDtypeStruct((taps, taps, 8, 4), jnp.float32)

    def convolve(x, kernel):
        return ops.conv2d(x, kernel, stride=stride, padding=taps // 2, layout="HWNC")

    text = jax.jit(convolve).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.dot_general" in text) == (is_product and platform == "cuda")
    assert ("stablehlo.convolution" in text) != (is_product and platform == "cuda")


@pytest.mark.parametrize("layer", ["layer2", "stride", "depthwise"])
def test_conv2d_under_vmap_and_scan(layer):
    side, shape, window = LAYERS[layer]
    generator = np.random.default_rng(0)
    channels = shape[2] * window.get("groups", 1)
    x = jnp.asarray(generator.standard_normal((side, side, 2, channels)), jnp.float32)
    kernels = jnp.asarray(generator.standard_normal((3, *shape)), jnp.float32)

    def loss(x, kernel):
        return (ops.conv2d(x, kernel, layout="HWNC", **window) ** 2).sum()

    def gradients(kernel):
        return jax.grad(loss, (0, 1))(x, kernel)

    one_by_one = [jax.jit(gradients)(kernel) for kernel in kernels]
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *one_by_one)
    for together in (jax.jit(jax.vmap(gradients))(kernels), lax.map(gradients, kernels)):
        for actual, wanted in zip(together, stacked, strict=True):
            assert_close(actual, wanted, 1e-5)


max_pool = functools.partial(ops.max_pool, window=3, stride=2, padding=1)


def check_pool(x, dy):
    ours = value_and_gradients(max_pool, jnp.asarray(dy), jnp.asarray(x))
    theirs = torch_of(x)
    pooled = torch.nn.MaxPool2d(3, 2, 1)(theirs)
    pooled.backward(torch_of(dy))
    np.testing.assert_array_equal(ours[0], nhwc(pooled))
    assert_close(ours[1], nhwc(theirs.grad), 1e-6)


@few(max_examples=15)
@given(st.integers(1, 9), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_max_pool_is_torchs(height, width, ties, seed):
    generator = np.random.default_rng(seed)
    shape = (2, height, width, 3)
    # After ReLU half of a map is zero, so ties are common; torch gives the gradient to the first maximum.
    x = generator.integers(-1, 2, shape) if ties else generator.standard_normal(shape)
    dy = generator.standard_normal((2, (height + 1) // 2, (width + 1) // 2, 3))
    check_pool(x.astype(np.float32), dy.astype(np.float32))


@pytest.mark.parametrize("side", [6, 7])
def test_max_pool_propagates_nan(side):
    x = np.zeros((1, side, side, 1), np.float32)
    x[0, 2, 3] = np.nan
    wanted = torch.nn.MaxPool2d(3, 2, 1)(torch_of(x))
    np.testing.assert_array_equal(jax.jit(max_pool)(x), nhwc(wanted))
    assert np.isnan(nhwc(wanted)).any()


@pytest.mark.parametrize("side", [6, 7])
def test_max_pool_in_bfloat16(side):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, side, side, 4)), jnp.bfloat16)
    y = max_pool(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, max_pool(x.astype(jnp.float32)).astype(jnp.bfloat16))


NORM_CASES = [(relu, residual) for relu in (False, True) for residual in (False, True)]


def torch_norm(channels):
    norm = torch.nn.BatchNorm2d(channels).double()
    with torch.no_grad():
        norm.weight.uniform_(-1.5, 1.5, generator=torch.Generator().manual_seed(0))
        norm.bias.normal_(generator=torch.Generator().manual_seed(1))
    return norm


def norm_inputs(channels=5, shape=(4, 3, 6), dtype=np.float64):
    generator = np.random.default_rng(3)
    return [generator.normal(2.0, 3.0, (*shape, channels)).astype(dtype) for _ in range(3)]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("relu", "residual"), NORM_CASES)
def test_batch_norm_matches_torch(train, relu, residual):
    x, beside, dy = norm_inputs()
    theirs = torch_norm(5)
    their_x, their_beside = torch_of(x), torch_of(beside)
    arrays = [theirs.weight, theirs.bias]
    scale, bias = (parameter.detach().numpy() for parameter in arrays)
    theirs(torch_of(beside))  # moves the running statistics away from their initial values
    mean, var = (buffer.numpy().copy() for buffer in (theirs.running_mean, theirs.running_var))
    theirs.train(train)
    y = theirs(their_x) + (their_beside if residual else 0)
    y = y.relu() if relu else y
    y.backward(torch_of(dy))

    def ours(x, beside, scale, bias):
        settings = {"residual": beside if residual else None, "relu": relu}
        if train:
            return ops.batch_norm(x, scale, bias, **settings)[0]
        return ops.normalize(x, jnp.asarray(mean), jnp.asarray(var), scale, bias, **settings)

    with jax.enable_x64():
        result, dx, d_beside, d_scale, d_bias = value_and_gradients(ours, dy, x, beside, scale, bias)
    assert_close(result, nhwc(y), 1e-12)
    assert_close(dx, nhwc(their_x.grad), 1e-11)
    assert_close(d_beside, nhwc(their_beside.grad) if residual else np.zeros_like(beside), 1e-12)
    assert_close(d_scale, theirs.weight.grad.numpy(), 1e-12)
    assert_close(d_bias, theirs.bias.grad.numpy(), 1e-12)


def test_running_statistics_match_torch():
    theirs, ours = torch.nn.BatchNorm2d(5), BatchNorm2d(5)
    for x in norm_inputs(shape=(2, 1, 2), dtype=np.float32):  # four values: biased and unbiased differ by a third
        np.testing.assert_allclose(ours(jnp.asarray(x), train=True), nhwc(theirs(torch_of(x))), atol=2e-5)
        np.testing.assert_allclose(ours.mean[...], theirs.running_mean, rtol=1e-5)
        np.testing.assert_allclose(ours.var[...], theirs.running_var, rtol=1e-5)
    kept = np.asarray(ours.mean[...]), np.asarray(ours.var[...])
    np.testing.assert_allclose(ours(jnp.asarray(x), train=False), nhwc(theirs.eval()(torch_of(x))), atol=2e-5)
    np.testing.assert_array_equal((ours.mean[...], ours.var[...]), kept)


def test_batch_norm_far_from_zero():
    """In float32, E[x^2] - E[x]^2 would have no correct digit here."""
    x = np.random.default_rng(0).normal(1e4, 1.0, (64, 4, 4, 3)).astype(np.float32)
    _, _, variance = ops.batch_norm(jnp.asarray(x), jnp.ones(3), jnp.zeros(3))
    np.testing.assert_allclose(variance, x.astype(np.float64).var((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize("distance", [0.0, 3.0, 30.0])
def test_statistics_in_one_pass_are_exact_near_the_running_mean(distance):
    """As on accelerators; the mean, 1e4, has no digit left for the deviation, 1."""
    x = np.random.default_rng(0).normal(1e4, 1.0, (64, 4, 4, 3)).astype(np.float32)
    near = jnp.full(3, 1e4 + distance, jnp.float32)
    mean, variance = _one_pass(jnp.asarray(x), near, None)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean((0, 1, 2)), rtol=1e-7)
    np.testing.assert_allclose(variance, x.astype(np.float64).var((0, 1, 2)), rtol=1e-3)
    _, constant = _one_pass(jnp.full((64, 2), 0.1), jnp.asarray([3.0, 0.1]), None)
    assert np.all((constant >= 0) & (constant < 1e-5)), "rounding makes no variance negative"


@pytest.mark.parametrize("near", [None, np.zeros(8, np.float32)])
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_only_an_accelerator_takes_one_pass_and_only_near_the_mean(platform, near):
    def statistics(x):
        return ops.batch_norm(x, jnp.ones(8), jnp.zeros(8), near=near)[1:]

    traced = jax.jit(statistics).trace(jax.ShapeDtypeStruct((4, 2, 8), np.float32))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    one_pass = "stablehlo.maximum" in text  # its variance could be rounded to less than 0
    assert one_pass == (platform != "cpu" and near is not None)


def test_batch_norm_of_bfloat16_has_float32_statistics():
    x, beside, dy = (jnp.asarray(array, jnp.bfloat16) for array in norm_inputs(shape=(8, 8, 8)))
    scale, bias = jnp.linspace(0.5, 1.5, 5), jnp.linspace(-1.0, 1.0, 5)

    def norm(x, beside, scale, bias):
        return ops.batch_norm(x, scale, bias, residual=beside)[0]

    narrow = value_and_gradients(norm, dy, x, beside, scale, bias)
    wanted = value_and_gradients(norm, *(array.astype(jnp.float32) for array in (dy, x, beside, scale, bias)))
    assert [array.dtype for array in narrow] == 3 * [jnp.bfloat16] + 2 * [jnp.float32]
    for one, other in zip(narrow, wanted, strict=True):
        assert_close(one, other, 1e-2)
    _, mean, variance = ops.batch_norm(x, scale, bias)
    wide = np.asarray(x, np.float64)
    assert {mean.dtype, variance.dtype} == {jnp.dtype(jnp.float32)}
    assert_close(mean, wide.mean((0, 1, 2)), 1e-6)
    assert_close(variance, wide.var((0, 1, 2)), 1e-6)


@pytest.mark.parametrize(("relu", "residual"), NORM_CASES)
def test_batch_norm_over_eight_devices_equals_that_of_the_whole_batch(relu, residual):
    x, beside, dy = norm_inputs(shape=(16, 2, 3))
    scale, bias = np.linspace(0.5, 1.5, 5), np.linspace(-1.0, 1.0, 5)

    def run(dy, x, beside, axis_name=None):
        def norm(x, beside, scale, bias):
            y, *statistics = ops.batch_norm(
                x, scale, bias, residual=beside if residual else None, relu=relu, axis_name=axis_name
            )
            return y, statistics

        y, pull, statistics = jax.vjp(norm, x, beside, jnp.asarray(scale), jnp.asarray(bias), has_aux=True)
        dx, d_beside, *d_parameters = pull(dy)
        if axis_name is not None:  # each device holds the part from its own images
            d_parameters = lax.psum(d_parameters, axis_name)
        return (y, dx, d_beside), (statistics, d_parameters)

    with jax.enable_x64():
        whole = jax.jit(run)(dy, x, beside)
        local_batches = (array.reshape(8, 2, *array.shape[1:]) for array in (dy, x, beside))
        by_device, replicated = jax.pmap(
            functools.partial(run, axis_name="data"), axis_name="data", out_axes=(0, None), devices=jax.devices()[:8]
        )(*local_batches)
    for actual, wanted in zip(by_device, whole[0], strict=True):
        assert_close(np.asarray(actual).reshape(wanted.shape), wanted, 1e-12)
    for actual, wanted in zip(jax.tree.leaves(replicated), jax.tree.leaves(whole[1]), strict=True):
        assert_close(actual, wanted, 1e-12)
