"""The networks, by their torchvision names."""

from sft_jax.models.functional import Functional
from sft_jax.models.resnet import SHAPES, ResNet

__all__ = ["SHAPES", "Functional", "ResNet"]
