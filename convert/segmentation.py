"""torchvision's networks for segmentation: FCN and DeepLabV3 on dilated ResNets, DeepLabV3 and LRASPP on MobileNetV3.

Their names in files are those of the backbone, below `backbone`, and of the head, below `classifier`. The auxiliary
head, `aux_classifier`, only helped to train the backbone; it is left out.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
import torchvision

from convert.names import PREFIX, Dialect
from convert.reference import Reference, Tensors, without_values
from convert.resnet import ResNetReference
from sft_jax.models.mobilenet import VARIANTS
from sft_jax.models.segmentation import REFERENCES

AUXILIARY = "aux_classifier."
# A name in the head of each kind.
LANDMARKS = {
    "deeplabv3": "classifier.0.convs.0.0.weight",
    "lraspp": "classifier.cbr.0.weight",
    "fcn": "classifier.4.weight",
}


class SegmentationReference(Reference):
    """See `Reference`."""

    title = "one of torchvision's networks for segmentation"
    landmark = "backbone.conv1.weight or backbone.0.0.weight"
    body = ("backbone.", "classifier.")
    dense = True

    def module(self, arch: str, outputs: int, state_dict: Mapping[str, torch.Tensor], stem: str) -> torch.nn.Module:
        """See `Reference`."""
        make = torchvision.models.get_model
        module = without_values(lambda: make(arch, weights=None, weights_backbone=None, num_classes=outputs))
        module.load_state_dict(state_dict, strict=True, assign=True)
        return module.eval()

    def stages(self, module: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """Returns the blocks of the backbone, and the head before the interpolation."""
        found: Any = module
        if "layer1" in found.backbone:
            stages = ResNetReference().stages(found.backbone)
        else:
            stem, *flat = found.backbone.values()
            rows = VARIANTS["mobilenet_v3_large"].rows
            names = [f"blocks.{stage}.{index}" for stage, row in enumerate(rows) for index, _ in enumerate(row)]
            stages = {"stem": stem} | dict(zip(names, flat, strict=True))
        return {f"backbone.{name}": stage for name, stage in stages.items()} | {"classifier": found.classifier}

    def logits(self, module: torch.nn.Module, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `Reference`: torchvision's modules return dictionaries."""
        return module(given["images"])["out"]

    def dialects(self, arch: str) -> tuple[Dialect, ...]:
        """See `Reference`."""
        return (Dialect(None, re.compile(PREFIX + r"backbone\.(?:conv1|0\.0)\.weight")),)

    def siblings(self, state_dict: Mapping[str, torch.Tensor]) -> list[str]:
        """Returns the networks with the same head and as many blocks."""
        kind = next((kind for kind, name in LANDMARKS.items() if name in state_dict), None)
        blocks = {match[1] for name in state_dict if (match := re.match(r"backbone\.layer3\.(\d+)\.", name))}
        backbone = {6: "resnet50", 23: "resnet101", 0: "mobilenet_v3_large"}.get(len(blocks))
        return [name for name in (f"{kind}_{backbone}",) if name in REFERENCES]

    def adapted(self, state_dict: Mapping[str, torch.Tensor], arch: str) -> tuple[Tensors, list[str]]:
        """Leaves the auxiliary head out."""
        kept = {name: tensor for name, tensor in state_dict.items() if not name.startswith(AUXILIARY)}
        left = len(state_dict) - len(kept)
        notice = f"its auxiliary head ({left} tensors {AUXILIARY}*), which only helps in training, was left out"
        return kept, [notice] if left else []
