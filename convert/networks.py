"""The same network in torch and in Flax."""

import functools
from collections.abc import Mapping

import torch
import torchvision

from convert import keys
from sft_jax.models import ARCHITECTURES, Network
from sft_jax.models.architecture import Builder
from sft_jax.models.resnet import STEMS


@functools.cache
def flax_network(arch: str, classes: int, stem: str = "imagenet") -> Network:
    """Returns our network, with shapes instead of arrays."""
    return Network.abstract(Builder(ARCHITECTURES[arch], classes, {"stem": stem}))


def torch_network(
    arch: str, classes: int, state_dict: Mapping[str, torch.Tensor], stem: str = "imagenet"
) -> torchvision.models.ResNet:
    """Returns torchvision's network with `state_dict` and its stem and input channels, in evaluation mode."""
    with torch.device("meta"):  # skips random initialisation
        module = torchvision.models.get_model(arch, weights=None, num_classes=classes)
        put_stem(module, stem, channels=state_dict["conv1.weight"].shape[1])
    module.load_state_dict(state_dict, strict=True, assign=True)
    return module.eval()


def put_stem(module: torchvision.models.ResNet, stem: str, *, channels: int = 3) -> None:
    """Replaces the stem of torchvision's network by one of our `STEMS` with `channels` input channels, in place."""
    wanted = STEMS[stem]
    if (wanted.size, channels) != (module.conv1.kernel_size[0], module.conv1.in_channels):
        module.conv1 = torch.nn.Conv2d(channels, 64, wanted.size, padding=wanted.size // 2, bias=False)
    module.conv1.stride = (wanted.stride, wanted.stride)
    if not wanted.pool:
        module.maxpool = torch.nn.Identity()


def stem_of(state_dict: Mapping[str, torch.Tensor], recorded: str | None = None) -> str:
    """Returns which of our `STEMS` a state_dict has: `recorded` if the shapes allow it, otherwise from the shapes."""
    kernel = state_dict.get("conv1.weight")
    size = 3 if kernel is not None and kernel.shape[2:] == (3, 3) else 7
    likely = [name for name, stem in STEMS.items() if stem.size == size]
    return recorded if recorded in likely else likely[0]


def takes_gray(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Returns whether the first convolution is one of our `STEMS` but with a single input channel."""
    kernel = state_dict.get("conv1.weight")
    shapes = [(64, 1, stem.size, stem.size) for stem in STEMS.values()]
    return kernel is not None and kernel.shape in shapes and keys.is_plain(kernel)


def with_colours(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Converts a network for gray images to RGB; outputs are the same if all three channels hold the gray image."""
    if not takes_gray(state_dict):
        return dict(state_dict)
    return {**state_dict, "conv1.weight": state_dict["conv1.weight"].float().repeat(1, 3, 1, 1) / 3}
