"""The numerical operations of a convolutional network, lowered for the platform they run on."""

from sft_jax.ops.conv import conv2d
from sft_jax.ops.norm import batch_norm, normalize
from sft_jax.ops.pool import max_pool

__all__ = ["batch_norm", "conv2d", "max_pool", "normalize"]
