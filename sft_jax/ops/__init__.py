"""Operations of convolutional networks, with lowerings chosen by platform."""

from sft_jax.ops.conv import conv2d
from sft_jax.ops.norm import batch_norm, normalize
from sft_jax.ops.pool import max_pool

__all__ = ["batch_norm", "conv2d", "max_pool", "normalize"]
