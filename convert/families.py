"""The families of networks that can be converted, and the same network in torch and in Flax."""

import functools

from convert.efficientnet import EfficientNetReference
from convert.reference import Reference
from convert.resnet import ResNetReference
from sft_jax.models import ARCHITECTURES, Network
from sft_jax.models.architecture import Builder

# By `Architecture.family`.
REFERENCES: dict[str, Reference] = {"resnet": ResNetReference(), "efficientnet": EfficientNetReference()}


def reference_of(arch: str) -> Reference:
    """Returns the torch side of the network `arch`."""
    return REFERENCES[ARCHITECTURES[arch].family]


@functools.cache
def flax_network(arch: str, classes: int, stem: str = "imagenet") -> Network:
    """Returns our network, with shapes instead of arrays."""
    return Network.abstract(Builder(ARCHITECTURES[arch], classes, {"stem": stem}))
