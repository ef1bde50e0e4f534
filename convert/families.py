"""The families of networks that can be converted, and the same network in torch and in Flax."""

import functools
import importlib.util

from convert.bert import BertReference
from convert.convnext import ConvNeXtReference
from convert.dinov3 import DinoV3Reference
from convert.efficientnet import EfficientNetReference
from convert.mobilenet import MobileNetReference
from convert.modernbert import ModernBertReference
from convert.reference import Reference
from convert.regnet import RegNetReference
from convert.resnet import ResNetReference
from convert.segformer import MitReference, SegformerReference
from convert.segmentation import SegmentationReference
from convert.swin import SwinReference
from convert.upernet import UPerNetReference
from convert.vit import VitReference
from sft_jax.config.shipped import install_command
from sft_jax.errors import UserError
from sft_jax.models import Network, architecture
from sft_jax.models.architecture import Builder
from sft_jax.models.segmentation import REFERENCES as KNOWN

# By `Architecture.family`.
REFERENCES: dict[str, Reference] = {
    "resnet": ResNetReference(),
    "efficientnet": EfficientNetReference(),
    "mobilenet": MobileNetReference(),
    "regnet": RegNetReference(),
    "convnext": ConvNeXtReference(),
    "swin": SwinReference(),
    "vit": VitReference(),
    "dinov3": DinoV3Reference(),
    "bert": BertReference(),
    "modernbert": ModernBertReference(),
    "mit": MitReference(),
    "segformer": SegformerReference(),
    "upernet": UPerNetReference(),
    "segmentation": SegmentationReference(),
}

# The extras that install `Architecture.reference`, where converting other networks does not need it.
EXTRAS = {"timm": "convert", "transformers": "text"}


def reference_of(arch: str) -> Reference:
    """Returns the torch side of the network `arch`. Raises UserError if the library that defines it is missing."""
    library = architecture(arch).reference
    if not library:
        raise UserError(f"{arch} exists in no library of torch: of these networks only {', '.join(sorted(KNOWN))} do")
    if library in EXTRAS and importlib.util.find_spec(library) is None:
        raise UserError(f"converting {arch} needs {library}: {install_command(EXTRAS[library])}")
    return REFERENCES[architecture(arch).family]


@functools.cache
def flax_network(arch: str, classes: int, stem: str = "imagenet", size: int | None = None) -> Network:
    """Returns our network, with shapes instead of arrays.

    `size` is that of the images in pixels, by default the usual one; it matters only for position embeddings.
    """
    placed = {} if size is None else {"size": size}
    return Network.abstract(Builder(architecture(arch), classes, {"stem": stem} | placed))
