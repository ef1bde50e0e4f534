"""PyTorch's networks for the benchmark, with random weights: torchvision's, timm's or transformers'."""

import sys
from typing import Any

import torch
import torchvision
from torchvision.models import segmentation

from sft_jax import models
from sft_jax.benchmark import worker
from sft_jax.config.shipped import shipped
from sft_jax.errors import UserError
from sft_jax.models.dense_heads import HEADS
from sft_jax.models.segmentation import REFERENCES, DenseArchitecture, first_map


class Segmenter(torch.nn.Module):
    """timm's backbone with a head of torchvision's or transformers', for outputs of pixels that neither has whole.

    Raises:
      UserError: a library is not installed, or none has the head for any backbone.
    """

    def __init__(self, architecture: DenseArchitecture):
        super().__init__()
        heads = {"fcn": segmentation.fcn.FCNHead, "deeplabv3": segmentation.deeplabv3.DeepLabHead}
        all_maps = HEADS[architecture.kind].reads == "all"
        if architecture.kind not in (*heads, "segformer"):
            raise UserError(f"PyTorch has no {architecture.name}; compare {' or '.join(sorted(REFERENCES))}")
        name, stride = architecture.backbone.name, architecture.strides[-1]
        count = len(architecture.strides) - first_map(architecture.backbone) if all_maps else 1
        places = tuple(range(-count, 0))
        backbone: Any = _timm(name, features_only=True, out_indices=places, output_stride=stride)
        channels = backbone.feature_info.channels()
        if all_maps:
            config = _transformers(architecture.name).SegformerConfig(
                num_encoder_blocks=count, hidden_sizes=channels, num_labels=worker.CLASSES
            )
            from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

            head = SegformerDecodeHead(config)
        else:
            head = heads[architecture.kind](channels[-1], worker.CLASSES)
        self.backbone, self.classifier, self.all_maps = backbone, head, all_maps

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps images [batch, 3, height, width] to {"out": logits [batch, classes, height, width]}."""
        maps = self.backbone(images)
        logits = self.classifier(maps if self.all_maps else maps[0])
        return {"out": torch.nn.functional.interpolate(logits, images.shape[2:], mode="bilinear")}


class OfTransformers(torch.nn.Module):
    """transformers' network of images with random weights. Raises UserError if it is not installed."""

    def __init__(self, arch: str):
        super().__init__()
        self.reference, self.dense = _reference(arch), models.architecture(arch).dense
        self.network = _drawn(self.reference, arch)

    def forward(self, images: torch.Tensor) -> Any:
        """Maps images as a network of torchvision: to {"out": logits} of pixels, or logits of the whole images."""
        logits = self.reference.logits(self.network, {"images": images})
        return {"out": logits} if self.dense else logits


def _transformers(arch: str) -> Any:
    try:
        import transformers
    except ModuleNotFoundError:
        raise UserError(f"PyTorch's {arch} is transformers': pip install transformers") from None
    return transformers


def _reference(arch: str) -> Any:
    """Returns the converters' `Reference` of a network of transformers. Raises UserError if that is missing."""
    _transformers(arch)
    sys.path.insert(0, str(shipped("convert").parent))
    from convert.families import reference_of

    return reference_of(arch)


def _drawn(reference: Any, arch: str) -> Any:
    """Returns the network `arch` of transformers with random weights."""
    shapes = reference.empty(arch, worker.CLASSES).state_dict()
    weights = {name: 0.02 * torch.rand(tensor.shape) for name, tensor in shapes.items()}  # variances are positive
    network = reference.module(arch, worker.CLASSES, weights, "imagenet")
    network.config._attn_implementation = "sdpa"  # transformers' default, which the converter needs not use
    return network


def _timm(name: str, **settings: Any) -> torch.nn.Module:
    try:
        import timm
    except ModuleNotFoundError:
        raise UserError(f"PyTorch's {name} is timm's: pip install timm") from None
    return timm.create_model(name, **settings)


def of_images(arch: str, size: int) -> torch.nn.Module:
    """Returns torchvision's network, or timm's or transformers' if it has none, for images of `size` pixels.

    Raises:
      UserError: it is of a library that is not installed.
    """
    architecture = models.architecture(arch)
    sized: dict[str, Any] = {}
    if architecture.reference == "transformers":
        return OfTransformers(arch)
    if isinstance(architecture, DenseArchitecture):
        if arch not in REFERENCES:
            return Segmenter(architecture)
        sized = {"weights_backbone": None}
    if architecture.reference == "torchvision":
        sized |= {} if architecture.positions is None else {"image_size": size}
        return torchvision.models.get_model(arch, weights=None, num_classes=worker.CLASSES, **sized)
    sized |= {} if architecture.positions is None else {"img_size": size}
    return _timm(arch, num_classes=worker.CLASSES, **sized)


def of_texts(arch: str, batch: int, length: int) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Returns transformers' network with random weights, and inputs of it by name, [batch, length].

    Raises:
      UserError: transformers is not installed.
    """
    reference = _reference(arch)
    network = _drawn(reference, arch)
    tokens, segments = worker.texts(arch, batch, length)[0].values()
    return network, reference.given(network, tokens, segments)
