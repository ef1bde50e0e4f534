"""Layers with torch's names, initialisation and rounding; their leaves have JAX's names."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sft_jax import ops
from sft_jax.ops.conv import Layout
from sft_jax.ops.norm import EPSILON

# Decay of the running statistics; torch calls it a momentum of 0.1.
KEEP_STATISTICS = 0.9


class OneValueError(ValueError):
    """Batch norm in training got a single value per channel, which it would always normalise to zero."""


class Conv2d(nnx.Module):
    """Bias-free convolution, `torch.nn.Conv2d(bias=False)`; kernel [height, width, in / groups, out]."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        dtype,
        rngs,
    ):
        # As torchvision's kaiming_normal_(mode="fan_out", nonlinearity="relu"), whose fan_out counts outputs per group.
        deviation = (2.0 / (size * size * outputs / groups)) ** 0.5
        shape = (size, size, inputs // groups, outputs)
        self.kernel = nnx.Param(deviation * jax.random.normal(rngs.params(), shape, jnp.float32))
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups, self.dtype = groups, dtype

    def __call__(self, x: jax.Array, layout: Layout = "HWNC") -> jax.Array:
        """Convolves x [height, width, batch, in], or in the given `layout`; of any dtype, the result is of `dtype`."""
        kernel = self.kernel[...].astype(self.dtype)
        return ops.conv2d(
            x.astype(self.dtype),
            kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            layout=layout,
        )


def conv_images(conv: Conv2d, x: jax.Array) -> jax.Array:
    """Convolves x [batch, height, width, in]; on CPUs the other layout is faster for kernels larger than 1x1."""
    if conv.kernel.shape[0] == 1:
        return conv(x, layout="NHWC")
    return conv(x.transpose(1, 2, 0, 3)).transpose(2, 0, 1, 3)


class BatchNorm2d(nnx.Module):
    """`torch.nn.BatchNorm2d` over the last axis, fused with the addition and ReLU that follow in a residual block.

    In training the statistics are those of the batch over all devices of `axis_name`, and the running variance is
    unbiased, as in torch. Statistics are float32 or wider for any input dtype.

    Raises:
      OneValueError: in training, if x has a single value per channel.
    """

    def __init__(self, channels: int, *, axis_name: str | None = None, epsilon: float = EPSILON):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))
        self.axis_name, self.epsilon = axis_name, epsilon

    def __call__(
        self, x: jax.Array, *, train: bool, relu: bool = False, residual: jax.Array | None = None
    ) -> jax.Array:
        """Normalises x [..., channels]; updates the running statistics if `train` is set."""
        scale, bias = self.scale[...], self.bias[...]
        if train:
            count = x.size // x.shape[-1] * (jax.lax.axis_size(self.axis_name) if self.axis_name else 1)
            if count == 1:
                raise OneValueError(f"batch norm in training needs more than one value per channel, got x {x.shape}")
            y, mean, var = ops.batch_norm(
                x,
                scale,
                bias,
                near=self.mean[...],
                residual=residual,
                relu=relu,
                axis_name=self.axis_name,
                epsilon=self.epsilon,
            )
            unbiased = var * (count / (count - 1))
            self.mean[...] = KEEP_STATISTICS * self.mean[...] + (1 - KEEP_STATISTICS) * mean
            self.var[...] = KEEP_STATISTICS * self.var[...] + (1 - KEEP_STATISTICS) * unbiased
            return y
        mean, var = self.mean[...], self.var[...]
        return ops.normalize(x, mean, var, scale, bias, residual=residual, relu=relu, epsilon=self.epsilon)


class NormedConv(nnx.Module):
    """A convolution and the normalisation after it, timm's `ConvNormAct`.

    Args:
      conv: the convolution.
      axis_name, epsilon: see `BatchNorm2d`.
    """

    def __init__(self, conv: Conv2d, *, axis_name: str | None = None, epsilon: float = EPSILON):
        self.conv = conv
        self.bn = BatchNorm2d(conv.kernel.shape[-1], axis_name=axis_name, epsilon=epsilon)

    def __call__(self, x: jax.Array, *, train: bool, relu: bool = False, layout: Layout = "HWNC") -> jax.Array:
        """Maps x [height, width, batch, in], or in the given `layout`."""
        return self.bn(self.conv(x, layout), train=train, relu=relu)


class Linear(nnx.Linear):
    """`torch.nn.Linear`; kernel [in, out], initialised uniformly in +-1/sqrt(in) as in torch."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        bound = inputs**-0.5

        def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)

        super().__init__(inputs, outputs, precision="highest", kernel_init=uniform, bias_init=uniform, rngs=rngs)


class PixelLinear(nnx.Module):
    """A 1x1 convolution with bias, `torch.nn.Conv2d(inputs, outputs, 1)`, in float32; kernel [1, 1, in, out]."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        bound = inputs**-0.5

        def uniform(*shape: int) -> nnx.Param:
            return nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound))

        self.kernel, self.bias = uniform(1, 1, inputs, outputs), uniform(outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [..., in] to [..., out]."""
        kernel = self.kernel[0, 0]
        y = jnp.matmul(x.astype(kernel.dtype), kernel, precision="highest")
        return y + jnp.broadcast_to(self.bias[...], y.shape)
