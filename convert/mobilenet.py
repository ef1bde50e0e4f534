"""MobileNets in torch: torchvision's `mobilenet_v3_small` and `large`, timm's for all others.

| torchvision               | timm                          |
| ------------------------- | ----------------------------- |
| features.0.0, .1          | conv_stem, bn1                |
| features.2.block.0.0, .1  | blocks.1.0.conv_pw, bn1       |
| features.2.block.1.0, .1  | blocks.1.0.conv_dw, bn2       |
| features.4.block.2.fc1    | blocks.2.0.se.conv_reduce     |
| features.2.block.2.0, .1  | blocks.1.0.conv_pwl, bn3      |
| features.16.0, .1         | blocks.6.0.conv, bn1          |
| classifier.0              | conv_head                     |
| classifier.3              | classifier                    |

Files of the one are not converted to networks of the other: the epsilon of batch norm differs, see
`sft_jax.models.mobilenet`.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
import torchvision

from convert.names import PREFIX, Dialect
from convert.reference import Reference, empty_network
from sft_jax.models import architecture
from sft_jax.models.mobilenet import VARIANTS

TORCHVISION = (Dialect(None, re.compile(PREFIX + r"features\.1\.block\.0\.0\.weight")),)
TIMM = (Dialect(None, re.compile(PREFIX + r"blocks\.0\.0\.(conv_dw|conv_exp|conv)\.weight")),)


class MobileNetReference(Reference):
    """See `Reference`."""

    title = "a MobileNet of this kind"
    landmark = "first block under a known name"
    body = ("features.", "classifier.0.", "conv_stem.", "bn1.", "blocks.", "conv_head.", "norm_head.")

    def module(self, arch: str, outputs: int, state_dict: Mapping[str, torch.Tensor], stem: str) -> torch.nn.Module:
        """See `Reference`."""
        module = empty_network(arch, outputs)
        module.load_state_dict(state_dict, strict=True, assign=True)
        return module.eval()

    def stages(self, module: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """Returns the stem and every block, each with its normalisation and activation, and the features."""
        found: Any = module
        if not isinstance(module, torchvision.models.MobileNetV3):
            blocks = {
                f"blocks.{stage}.{index}": block
                for stage, row in enumerate(found.blocks)
                for index, block in enumerate(row)
            }
            return {"stem": found.bn1} | blocks | {"head": found.flatten}
        stem, *flat = found.features
        # torchvision does not group blocks by stages; ours of the same number of blocks does.
        rows = next(each.rows for each in VARIANTS.values() if sum(map(len, each.rows)) == len(flat))
        names = [f"blocks.{stage}.{index}" for stage, row in enumerate(rows) for index, _ in enumerate(row)]
        return {"stem": stem} | dict(zip(names, flat, strict=True)) | {"head": found.classifier[1]}

    def dialects(self, arch: str) -> tuple[Dialect, ...]:
        """See `Reference`."""
        return TORCHVISION if architecture(arch).reference == "torchvision" else TIMM

    def width(self, state_dict: Mapping[str, torch.Tensor]) -> int | None:
        """See `Reference`."""
        last = (state_dict[name] for name in ("classifier.0.weight", "conv_head.weight") if name in state_dict)
        return next((len(kernel) for kernel in last if kernel.ndim), None)

    def siblings(self, state_dict: Mapping[str, torch.Tensor]) -> list[str]:
        """Returns the networks with as many blocks."""
        names = (re.match(r"(?:blocks\.\d+\.\d+|features\.[1-9]\d*)\.", name) for name in state_dict)
        count = len({match[0] for match in names if match})
        theirs = "torchvision" if any(name.startswith("features.") for name in state_dict) else "timm"
        return [
            arch
            for arch, variant in VARIANTS.items()
            if (sum(map(len, variant.rows)), architecture(arch).reference) == (count, theirs)
        ]
