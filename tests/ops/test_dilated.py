"""Compares dilated convolutions and bilinear interpolation with torch, values and gradients, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from test_ops import assert_close, nhwc, torch_of, value_and_gradients

from sft_jax import ops
from sft_jax.ops import dilated


def drawn(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


@pytest.mark.parametrize(
    ("height", "width", "side", "dilation", "groups"),
    [
        (9, 7, 3, 2, 1),
        (8, 8, 3, 4, 1),
        (5, 12, 3, 6, 2),
        (4, 4, 3, 5, 1),
        (13, 11, 5, 2, 6),
        (3, 9, 5, 2, 6),
        (6, 5, 1, 3, 1),
    ],
)
@pytest.mark.parametrize("layout", ["NHWC", "HWNC"])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_dilated_convolution_is_torchs(height, width, side, dilation, groups, layout, on_cpu):
    x, kernel = drawn(2, height, width, 6), drawn(side, side, 6 // groups, 6)
    theirs, weight = torch_of(x), torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).requires_grad_()
    reach = dilation * (side // 2)
    wanted = torch.nn.functional.conv2d(theirs, weight, padding=reach, dilation=dilation, groups=groups)
    dy = drawn(*nhwc(wanted).shape)
    wanted.backward(torch.from_numpy(np.moveaxis(dy, -1, 1).copy()))
    ours = functools.partial(ops.conv2d, padding=reach, dilation=dilation, groups=groups, layout=layout)
    if not on_cpu:
        ours = functools.partial(dilated._xla, dilation=dilation, groups=groups, layout=layout)
    turn = (1, 2, 0, 3) if layout == "HWNC" else (0, 1, 2, 3)
    with jax.enable_x64():
        y, dx, dk = value_and_gradients(ours, jnp.asarray(dy.transpose(turn)), jnp.asarray(x.transpose(turn)), kernel)
    for found, expected in ((y, nhwc(wanted)), (dx, nhwc(theirs.grad))):
        assert_close(np.asarray(found), expected.transpose(turn), 1e-12)
    assert_close(dk, weight.grad.numpy().transpose(2, 3, 1, 0), 1e-12)


def test_only_a_cpu_takes_the_image_apart():
    x, kernel = jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 4, 4))
    run = jax.jit(functools.partial(ops.conv2d, padding=2, dilation=2))
    for platform, is_dilated in (("cpu", False), ("cuda", True)):
        text = run.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        assert ("rhs_dilate = [2, 2]" in text) == is_dilated


@pytest.mark.parametrize(
    ("before", "after"), [((4, 4), (32, 32)), ((5, 7), (33, 50)), ((8, 9), (3, 4)), ((1, 1), (6, 5))]
)
def test_interpolation_is_torchs(before, after):
    x = drawn(2, *before, 3)
    theirs = torch_of(x)
    wanted = torch.nn.functional.interpolate(theirs, after, mode="bilinear", align_corners=False)
    dy = drawn(2, *after, 3)
    wanted.backward(torch.from_numpy(np.moveaxis(dy, -1, 1).copy()))
    with jax.enable_x64():
        y, dx = value_and_gradients(lambda x: ops.upsample(x, *after), jnp.asarray(dy), jnp.asarray(x))
    assert_close(y, nhwc(wanted), 1e-12)
    assert_close(dx, nhwc(theirs.grad), 1e-12)
