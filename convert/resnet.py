"""ResNets in torch: torchvision's, with our stems and one or three input channels."""

import re
from collections.abc import Mapping

import torch
import torchvision

from convert import keys, names
from convert.reference import Reference, Tensors
from sft_jax.errors import UserError
from sft_jax.models.resnet import STEMS, VARIANTS
from sft_jax.models.weights import some_of


class ResNetReference(Reference):
    """See `Reference`."""

    def module(
        self, arch: str, outputs: int, state_dict: Mapping[str, torch.Tensor], stem: str
    ) -> torchvision.models.ResNet:
        """Returns torchvision's network with `state_dict` and its stem and input channels, in evaluation mode."""
        with torch.device("meta"):  # skips random initialisation
            module = torchvision.models.get_model(arch, weights=None, num_classes=outputs)
            put_stem(module, stem, channels=state_dict["conv1.weight"].shape[1])
        module.load_state_dict(state_dict, strict=True, assign=True)
        return module.eval()

    def stages(self, module: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """Returns the stem, up to the max-pool, and every block."""
        assert isinstance(module, torchvision.models.ResNet)
        blocks = {
            f"layer{stage}.{index}": block
            for stage, layer in enumerate((module.layer1, module.layer2, module.layer3, module.layer4), start=1)
            for index, block in enumerate(layer)
        }
        return {"stem": module.maxpool} | blocks

    def input_channels(self, module: torch.nn.Module) -> int:
        """See `Reference`."""
        assert isinstance(module, torchvision.models.ResNet)
        return module.conv1.in_channels

    def check(self, state_dict: Mapping[str, torch.Tensor], source: str) -> None:
        """See `Reference`."""
        if not names.namings(state_dict):
            raise UserError(
                f"{source} is not a ResNet of torchvision's family: it has no layer1.0.conv1.weight, only "
                f"{some_of(list(state_dict))}"
            )

    def siblings(self, state_dict: Mapping[str, torch.Tensor]) -> list[str]:
        """Returns the networks with as many blocks in each stage."""
        layers = tuple(
            len({match[1] for key in state_dict if (match := re.match(rf"layer{stage}\.(\d+)\.", key))})
            for stage in (1, 2, 3, 4)
        )
        return [arch for arch, variant in VARIANTS.items() if variant.layers == layers]

    def stem_of(self, state_dict: Mapping[str, torch.Tensor], recorded: str | None) -> str:
        """See `Reference`."""
        kernel = state_dict.get("conv1.weight")
        size = 3 if kernel is not None and kernel.shape[2:] == (3, 3) else 7
        likely = [name for name, stem in STEMS.items() if stem.size == size]
        return recorded if recorded in likely else likely[0]

    def adapted(self, state_dict: Mapping[str, torch.Tensor]) -> tuple[Tensors, list[str]]:
        """Converts a network for gray images to RGB; outputs are the same if all three channels hold the gray image."""
        notices = []
        if self.stem_of(state_dict, None) == "cifar3x3":
            notices.append("its first convolution is 3x3: assuming model.stem=cifar3x3, stride 1 without max-pool")
        if not _takes_gray(state_dict):
            return dict(state_dict), notices
        notices.append("it takes gray images: its first kernel was divided by 3 and repeated for the RGB channels")
        rgb = state_dict["conv1.weight"].float().repeat(1, 3, 1, 1) / 3
        return {**state_dict, "conv1.weight": rgb}, notices


def put_stem(module: torchvision.models.ResNet, stem: str, *, channels: int = 3) -> None:
    """Replaces the stem of torchvision's network by one of our `STEMS` with `channels` input channels, in place."""
    wanted = STEMS[stem]
    if (wanted.size, channels) != (module.conv1.kernel_size[0], module.conv1.in_channels):
        module.conv1 = torch.nn.Conv2d(channels, 64, wanted.size, padding=wanted.size // 2, bias=False)
    module.conv1.stride = (wanted.stride, wanted.stride)
    if not wanted.pool:
        module.maxpool = torch.nn.Identity()


def _takes_gray(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Returns whether the first convolution is one of our `STEMS` but with a single input channel."""
    kernel = state_dict.get("conv1.weight")
    shapes = [(64, 1, stem.size, stem.size) for stem in STEMS.values()]
    return kernel is not None and kernel.shape in shapes and keys.is_plain(kernel)
