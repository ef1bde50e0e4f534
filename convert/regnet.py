"""RegNets in torch: torchvision's `regnet_y_*`.

| torchvision                       | timm                | Hugging Face                                    |
| --------------------------------- | ------------------- | ----------------------------------------------- |
| stem.0, .1                        | stem.conv, .bn      | embedder.embedder.convolution, .normalization   |
| trunk_output.block2.block2-0      | s2.b1               | encoder.stages.1.layers.0                       |
| - f.a.0, .1                       | - conv1.conv, .bn   | - layer.0.convolution, .normalization           |
| - f.se.fc1, .fc2                  | - se.fc1, .fc2      | - layer.2.attention.0, .2                       |
| - proj.0, .1                      | - downsample.conv   | - shortcut.convolution                          |
| fc                                | head.fc             | classifier.1                                    |
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from convert.names import PREFIX, Dialect
from convert.reference import Reference, empty_network
from sft_jax.models.regnet import VARIANTS, torchvision_path

# Our names of Hugging Face's modules of a block.
_HUGGING_FACE = {
    "layer.0": "conv1", "layer.1": "conv2", "layer.2.attention.0": "se.conv_reduce",
    "layer.2.attention.2": "se.conv_expand", "layer.3": "conv3", "shortcut": "downsample",
    "convolution": ".conv", "normalization": ".bn", None: "",
}  # fmt: skip


def _timm_name(match: re.Match) -> str:
    path = match["path"].replace("se.fc1", "se.conv_reduce").replace("se.fc2", "se.conv_expand")
    return f"{torchvision_path(path)}.{match['leaf']}"


def _hugging_face_name(match: re.Match) -> str:
    stage, number = int(match["stage"]) + 1, int(match["block"]) + 1
    module = _HUGGING_FACE[match["module"]] + _HUGGING_FACE[match["kind"]]
    return f"{torchvision_path(f's{stage}.b{number}.{module}')}.{match['leaf']}"


DIALECTS = (
    Dialect(None, re.compile(PREFIX + r"trunk_output\.block1\.block1-0\.f\.a\.0\.weight")),
    Dialect(
        "timm's",
        re.compile(PREFIX + r"s1\.b1\.conv1\.conv\.weight"),
        (
            (r"(?P<path>(?:s\d\.b\d+|stem)\..+)\.(?P<leaf>\w+)", _timm_name),
            (r"head\.fc\.(.+)", r"fc.\1"),
        ),
    ),
    Dialect(
        "Hugging Face's",
        re.compile(PREFIX + r"encoder\.stages\.0\.layers\.0\.layer\.2\.attention\.0\.weight"),
        (
            (r"embedder\.embedder\.convolution\.(.+)", r"stem.0.\1"),
            (r"embedder\.embedder\.normalization\.(.+)", r"stem.1.\1"),
            (
                r"encoder\.stages\.(?P<stage>\d)\.layers\.(?P<block>\d+)\."
                r"(?P<module>layer\.[013]|layer\.2\.attention\.[02]|shortcut)"
                r"(?:\.(?P<kind>convolution|normalization))?\.(?P<leaf>\w+)",
                _hugging_face_name,
            ),
        ),
    ),
)


class RegNetReference(Reference):
    """See `Reference`."""

    title = "a RegNet Y"
    landmark = "first block under a known name"
    body = ("stem.", "trunk_output.")

    def module(self, arch: str, outputs: int, state_dict: Mapping[str, torch.Tensor], stem: str) -> torch.nn.Module:
        """See `Reference`."""
        module = empty_network(arch, outputs)
        module.load_state_dict(state_dict, strict=True, assign=True)
        return module.eval()

    def stages(self, module: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """Returns the stem and every block."""
        found: Any = module
        blocks = {
            f"s{stage}.b{number}": block
            for stage, row in enumerate(found.trunk_output.children(), start=1)
            for number, block in enumerate(row.children(), start=1)
        }
        return {"stem": found.stem} | blocks

    def dialects(self, arch: str) -> tuple[Dialect, ...]:
        """See `Reference`."""
        return DIALECTS

    def width(self, state_dict: Mapping[str, torch.Tensor]) -> int | None:
        """See `Reference`."""
        norm = state_dict.get("trunk_output.block4.block4-0.f.c.1.bias")
        return None if norm is None else norm.numel()

    def siblings(self, state_dict: Mapping[str, torch.Tensor]) -> list[str]:
        """Returns the networks with as many blocks in each stage."""
        blocks = {
            match[0] for name in state_dict if (match := re.match(r"trunk_output\.block(\d)\.block\1-\d+\.", name))
        }
        counts = tuple(
            sum(block.startswith(f"trunk_output.block{stage}.") for block in blocks) for stage in range(1, 5)
        )
        return [arch for arch, variant in VARIANTS.items() if variant.blocks == counts]
