"""2-D convolution with the fastest lowering for the platform.

XLA's own convolution is used on GPUs and TPUs. On CPUs it is slow at small spatial sizes and in the backward pass,
especially inside a compiled loop, while its matrix products are twice as fast as torch's: there convolutions are
computed as matrix products.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from sft_jax.ops.depthwise import conv_depthwise
from sft_jax.ops.dilated import conv_dilated
from sft_jax.ops.im2col import conv_im2col, conv_patches, live_taps, output_size
from sft_jax.ops.winograd import conv_winograd
from sft_jax.ops.winograd_tiles import conv_winograd_tiles, product_size

Layout = Literal["NHWC", "HWNC"]

# Multiply-adds above which XLA's CPU backend parallelises each product of a batched matmul over the cores (jax 0.10.2):
# measured 120-160 GFLOP/s below and 220-310 above.
PARALLEL_PRODUCT = 2**23
# On maps of at least 8 px tiling wins earlier, as its transforms are cheaper. 16 px, 64 channels: batch 100 10.9 ms
# tiled, 15.3 over whole axes; batch 64 8.3, 9.8; 8 px, 128 channels: batch 100 9.4, 12.0; below, the two are equal.
TILED_PRODUCT = 2**22
# Patches of the stem are extracted in blocks of this many bytes, which stay in cache until they are multiplied.
PATCH_BYTES = 2**24


# Convolutions of the same shapes, of which networks have many, are traced once: ConvNeXt-T's training step takes
# 2.9 s instead of 4.3, ResNet-50's 2.7 instead of 3.5. Inlining leaves the compiled program unchanged.
@functools.partial(jax.jit, static_argnames=("stride", "padding", "dilation", "groups", "layout"), inline=True)
def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    layout: Layout = "NHWC",
) -> jax.Array:
    """Computes a 2-D convolution (cross-correlation) with symmetric zero padding, as `torch.nn.functional.conv2d`.

    Args:
      x: [batch, height, width, in] (or [height, width, batch, in] for layout "HWNC").
      kernel: [kernel_height, kernel_width, in / groups, out].
      stride: stride in pixels on both axes.
      padding: zero padding in pixels on each of the four sides. Explicit, because XLA's "SAME" pads even sizes
        asymmetrically, unlike torch.
      dilation: distance of the kernel's taps in pixels; if it is not 1, the stride must be 1 and the padding keep the
        size.
      groups: number of independent groups of input and output channels.
      layout: axis order of `x` and of the result. On CPUs "HWNC" is the fast one for groups=1, and "NHWC" for depthwise
        convolutions.
    """
    if dilation > 1:
        assert stride == 1
        assert padding == dilation * (kernel.shape[0] // 2)
        return conv_dilated(x, kernel, conv2d, dilation=dilation, groups=groups, layout=layout)
    xla = functools.partial(conv_xla, stride=stride, padding=padding, groups=groups, layout=layout)
    lowerings = {
        "cpu": _cpu_lowering(x, kernel, stride, padding, groups, layout),
        "cuda": _cuda_lowering(x, kernel, stride, padding, groups, layout),
    }
    chosen = {platform: lowering for platform, lowering in lowerings.items() if lowering is not None}
    return lax.platform_dependent(x, kernel, **chosen, default=xla) if chosen else xla(x, kernel)


def conv_xla(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: int, groups: int = 1, layout: Layout = "NHWC"
) -> jax.Array:
    """Computes `conv2d` with XLA's convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=(layout, "HWIO", layout),
        feature_group_count=groups,
    )


def _cpu_lowering(x, kernel, stride, padding, groups, layout):
    """Chooses the CPU lowering for these shapes, None for XLA's. Figures: 2 cores with AVX-512, forward + backward."""
    if groups == kernel.shape[-1] > 1 and kernel.shape[2] == 1:
        return functools.partial(_depthwise, stride=stride, padding=padding, layout=layout)
    if groups != 1:
        return None  # not measured
    if layout == "NHWC" and kernel.shape[:2] == (1, 1) and stride == 1 and padding == 0:
        return _pointwise
    if layout == "NHWC":
        # The network's first layer, whose input needs no gradient: only the kernel's gradient is ever computed.
        return functools.partial(conv_patch_gradient, stride=stride, padding=padding)
    height, width, _, _ = x.shape
    exact = x.dtype in (jnp.float32, jnp.float64)  # Winograd's cancellations would use up bfloat16's 8 bits
    if kernel.shape[:2] == (3, 3) and stride == padding == 1 and exact and min(height, width) >= 2:
        # Batch 32: 56 px 101 ms tiled, 126 by matrices, 150 as patches; 14 px 43, 62, 55; 7 px 40, 48, 45.
        enough = PARALLEL_PRODUCT if max(height, width) < 8 else TILED_PRODUCT
        large = product_size(x.shape, kernel.shape[-1]) >= enough or max(height, width) > 28
        if large and min(height, width) > 2:  # for two pixels, Karatsuba needs a quarter of F(4, 3)'s products
            return conv_winograd_tiles
        return conv_winograd  # layer1 to 3 at 32 px: 2-4 ms per convolution, XLA 6-145
    if all(live_taps(x.shape[axis], kernel.shape[axis], stride, padding) for axis in (0, 1)):
        # 1x1, stride 2, and 3x3 at one pixel: layer4 at 32 px 0.8 ms, XLA 40-80
        return functools.partial(_im2col, stride=stride, padding=padding)
    return None


def _cuda_lowering(x, kernel, stride, padding, groups, layout):
    """Chooses the lowering for NVIDIA GPUs, None for XLA's: cuDNN's convolutions.

    Where the kernel is larger than the map, XLA exchanges the two, so that kernels, their gradients and their momentum
    are transposed in every step.
    """
    rows, columns = kernel.shape[:2]
    if groups != 1 or layout != "HWNC":
        return None
    height, width = (output_size(x.shape[axis], kernel.shape[axis], stride, padding) for axis in (0, 1))
    is_small = height * width < rows * columns or height * width == 1
    if is_small and all(live_taps(x.shape[axis], kernel.shape[axis], stride, padding) for axis in (0, 1)):
        return functools.partial(_batch_first, stride=stride, padding=padding)
    return None


def _batch_first(x, kernel, *, stride, padding):
    # XLA's layout on GPUs is NHWC, so that these transposes move nothing.
    return conv_patches(x.transpose(2, 0, 1, 3), kernel, stride, padding).transpose(1, 2, 0, 3)


def _im2col(x, kernel, *, stride, padding):
    return conv_im2col(x, kernel, stride, padding)


def _pointwise(x, kernel):
    """Multiplies x [batch, height, width, in] with the kernel, as one matrix of all positions."""
    rows = x.reshape(1, 1, -1, x.shape[-1])
    return conv_im2col(rows, kernel, 1, 0).reshape(*x.shape[:3], kernel.shape[-1])


def _depthwise(x, kernel, *, stride, padding, layout):
    side = max(size for axis, size in enumerate(x.shape[:-1]) if axis != layout.index("N"))
    # Taps that only see padding: 24 of 49 at 3 px, where ConvNeXt ends for images of 96 px.
    dead = max(0, padding + 1 - side) if stride == 1 and kernel.shape[:2] == (2 * padding + 1,) * 2 else 0
    live = kernel[dead : kernel.shape[0] - dead, dead : kernel.shape[1] - dead]
    return conv_depthwise(x, live, stride, padding - dead, layout)


def conv_patch_gradient(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """Computes `conv_xla` of x [batch, height, width, in], with the kernel's gradient as a matmul over patches."""
    return _patch_gradient(x, kernel, stride, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _patch_gradient(x, kernel, stride, padding):
    return conv_xla(x, kernel, stride=stride, padding=padding)


def _patch_forward(x, kernel, stride, padding):
    return conv_xla(x, kernel, stride=stride, padding=padding), (x, kernel)


def _patch_backward(stride, padding, residuals, dy):
    x, kernel = residuals
    rows, columns, inputs, outputs = kernel.shape
    batch, out_height, out_width, _ = dy.shape
    edge = (padding, padding)
    padded = jnp.pad(x, ((0, 0), edge, edge, (0, 0)))
    per_image = rows * columns * inputs * out_height * out_width * x.dtype.itemsize
    images = next(
        count for count in range(batch, 0, -1) if count == 1 or (not batch % count and count * per_image <= PATCH_BYTES)
    )

    def gradient(padded, dy):
        """Computes the kernel's gradient [rows * columns * in, out] for some of the images."""
        channels_first = padded.transpose(3, 0, 1, 2)
        views = [
            lax.slice(
                channels_first,
                (0, 0, row, column),
                (inputs, len(dy), row + (out_height - 1) * stride + 1, column + (out_width - 1) * stride + 1),
                (1, 1, stride, stride),
            )
            for row in range(rows)
            for column in range(columns)
        ]
        return jnp.stack(views).reshape(rows * columns * inputs, -1) @ dy.reshape(-1, outputs)

    if images == batch:
        d_kernel = gradient(padded, dy)
    else:
        blocks = [array.reshape(-1, images, *array.shape[1:]) for array in (padded, dy)]
        zero = jnp.zeros((rows * columns * inputs, outputs), x.dtype)
        d_kernel, _ = lax.scan(lambda total, block: (total + gradient(*block), None), zero, blocks)
    # XLA removes this as dead code if x is the network's input.
    _, pull = jax.vjp(lambda x: conv_xla(x, kernel, stride=stride, padding=padding), x)
    return *pull(dy), d_kernel.reshape(kernel.shape)


_patch_gradient.defvjp(_patch_forward, _patch_backward)
