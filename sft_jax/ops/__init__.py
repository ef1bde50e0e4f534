"""Operations of convolutional networks and transformers, with lowerings chosen by platform."""

from sft_jax.ops.attention import attention, attention_weights, self_attention
from sft_jax.ops.conv import conv2d
from sft_jax.ops.norm import batch_norm, normalize
from sft_jax.ops.pool import max_pool
from sft_jax.ops.tokens import dense, gelu, layer_norm
from sft_jax.ops.upsample import upsample

__all__ = [
    "attention",
    "attention_weights",
    "batch_norm",
    "conv2d",
    "dense",
    "gelu",
    "layer_norm",
    "max_pool",
    "normalize",
    "self_attention",
    "upsample",
]
