"""ResNets in torch: torchvision's, with our stems and one or three input channels, and timm's ResNet-D.

timm's files of the networks that torchvision has are torchvision's, with other preprocessing. Names in files:

| torchvision        | Hugging Face                                         | Sequential | kuangliu   |
| ------------------ | ---------------------------------------------------- | ---------- | ---------- |
| conv1              | embedder.embedder.convolution                        | 0          | conv1      |
| bn1                | embedder.embedder.normalization                      | 1          | bn1        |
| layer2.0.conv1     | encoder.stages.1.layers.0.layer.0.convolution        | 5.0.conv1  |            |
| layer2.0.bn1       | encoder.stages.1.layers.0.layer.0.normalization      | 5.0.bn1    |            |
| layer2.0.downsample | encoder.stages.1.layers.0.shortcut                  |            | shortcut   |
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
import torchvision

from convert import keys
from convert.names import PREFIX, Dialect
from convert.reference import Reference, Tensors, empty_network
from sft_jax.models.resnet import DEEP_STEM, STEMS, VARIANTS

DEEP = "conv1.0.weight"  # the first kernel of ResNet-D


def _hugging_face_block(match: re.Match) -> str:
    block = f"layer{int(match['stage']) + 1}.{match['block']}"
    convolution = match["kind"] == "convolution"
    if match["layer"] is None:
        return f"{block}.downsample.{0 if convolution else 1}.{match['leaf']}"
    return f"{block}.{'conv' if convolution else 'bn'}{int(match['layer']) + 1}.{match['leaf']}"


DIALECTS = (
    Dialect(
        None,
        re.compile(PREFIX + r"layer[1-4]\.0\.conv1\.weight"),
        ((r"(layer\d\.\d+)\.shortcut\.(.+)", r"\1.downsample.\2"),),
    ),
    Dialect(
        "Hugging Face's",
        re.compile(PREFIX + r"encoder\.stages\.[0-3]\.layers\.0\.layer\.0\.convolution\.weight"),
        (
            (r"embedder\.embedder\.convolution\.(.+)", r"conv1.\1"),
            (r"embedder\.embedder\.normalization\.(.+)", r"bn1.\1"),
            (
                r"encoder\.stages\.(?P<stage>\d)\.layers\.(?P<block>\d+)\.(?:layer\.(?P<layer>\d)|shortcut)\."
                r"(?P<kind>convolution|normalization)\.(?P<leaf>.+)",
                _hugging_face_block,
            ),
        ),
    ),
    Dialect(
        "those of torch.nn.Sequential(*model.children())",
        re.compile(PREFIX + r"[4-7]\.0\.conv1\.weight"),
        (
            (r"0\.(.+)", r"conv1.\1"),
            (r"1\.(.+)", r"bn1.\1"),
            (r"([4-7])\.(\d+\..+)", lambda match: f"layer{int(match[1]) - 3}.{match[2]}"),
        ),
    ),
)


class ResNetReference(Reference):
    """See `Reference`."""

    title = "a ResNet of torchvision's family"
    landmark = "layer1.0.conv1.weight"
    body = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")

    def module(self, arch: str, outputs: int, state_dict: Mapping[str, torch.Tensor], stem: str) -> torch.nn.Module:
        """Returns the reference's network with `state_dict` and its stem and input channels, in evaluation mode."""
        module: Any = empty_network(arch, outputs)
        with torch.device("meta"):
            put_stem(module, stem, channels=state_dict[_first(state_dict)].shape[1])
        module.load_state_dict(state_dict, strict=True, assign=True)
        return module.eval()

    def stages(self, module: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """Returns the stem, up to the max-pool, and every block."""
        found: Any = module
        blocks = {
            f"layer{stage}.{index}": block
            for stage, layer in enumerate((found.layer1, found.layer2, found.layer3, found.layer4), start=1)
            for index, block in enumerate(layer)
        }
        return {"stem": found.maxpool} | blocks

    def input_channels(self, module: torch.nn.Module) -> int:
        """See `Reference`."""
        found: Any = module
        first: Any = found.conv1[0] if hasattr(found.conv1, "__getitem__") else found.conv1
        return first.in_channels

    def dialects(self, arch: str) -> tuple[Dialect, ...]:
        """See `Reference`."""
        return DIALECTS

    def width(self, state_dict: Mapping[str, torch.Tensor]) -> int | None:
        """See `Reference`."""
        for norm in ("bn3", "bn2"):
            if f"layer4.0.{norm}.bias" in state_dict:
                return state_dict[f"layer4.0.{norm}.bias"].numel()
        return None

    def siblings(self, state_dict: Mapping[str, torch.Tensor]) -> list[str]:
        """Returns the networks with as many blocks in each stage and the same kind of stem."""
        deep = DEEP in state_dict
        layers = tuple(
            len({match[1] for key in state_dict if (match := re.match(rf"layer{stage}\.(\d+)\.", key))})
            for stage in (1, 2, 3, 4)
        )
        return [arch for arch, variant in VARIANTS.items() if (variant.layers, variant.deep) == (layers, deep)]

    def stem_of(self, state_dict: Mapping[str, torch.Tensor], recorded: str | None) -> str:
        """See `Reference`."""
        if DEEP in state_dict:
            return "imagenet"
        kernel = state_dict.get("conv1.weight")
        size = 3 if kernel is not None and kernel.shape[2:] == (3, 3) else 7
        likely = [name for name, stem in STEMS.items() if stem.size == size]
        return recorded if recorded in likely else likely[0]

    def adapted(self, state_dict: Mapping[str, torch.Tensor], arch: str) -> tuple[Tensors, list[str]]:
        """Converts a network for gray images to RGB; outputs are the same if all three channels hold the gray image."""
        notices = []
        if self.stem_of(state_dict, None) == "cifar3x3":
            notices.append("its first convolution is 3x3: assuming model.stem=cifar3x3, stride 1 without max-pool")
        if not _takes_gray(state_dict):
            return dict(state_dict), notices
        notices.append("it takes gray images: its first kernel was divided by 3 and repeated for the RGB channels")
        first = _first(state_dict)
        rgb = state_dict[first].float().repeat(1, 3, 1, 1) / 3
        return {**state_dict, first: rgb}, notices


def put_stem(module: torchvision.models.ResNet, stem: str, *, channels: int = 3) -> None:
    """Replaces the stem of the reference's network by one of our `STEMS` with `channels` input channels, in place."""
    if isinstance(module.conv1, torch.nn.Sequential):
        if channels != module.conv1[0].in_channels:
            module.conv1[0] = torch.nn.Conv2d(channels, DEEP_STEM, 3, stride=2, padding=1, bias=False)
        return
    wanted = STEMS[stem]
    if (wanted.size, channels) != (module.conv1.kernel_size[0], module.conv1.in_channels):
        module.conv1 = torch.nn.Conv2d(channels, 64, wanted.size, padding=wanted.size // 2, bias=False)
    module.conv1.stride = (wanted.stride, wanted.stride)
    if not wanted.pool:
        module.maxpool = torch.nn.Identity()


def _takes_gray(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Returns whether the first convolution is one of our `STEMS` but with a single input channel."""
    kernel = state_dict.get(_first(state_dict))
    shapes = [(64, 1, stem.size, stem.size) for stem in STEMS.values()]
    if DEEP in state_dict:
        shapes = [(DEEP_STEM, 1, 3, 3)]
    return kernel is not None and kernel.shape in shapes and keys.is_plain(kernel)


def _first(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Returns the name of the first kernel."""
    return DEEP if DEEP in state_dict else "conv1.weight"
