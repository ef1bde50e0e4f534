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
    """Ours, with shapes in place of arrays."""
    return Network.abstract(Builder(ARCHITECTURES[arch], classes, {"stem": stem}))


def torch_network(
    arch: str, classes: int, state_dict: Mapping[str, torch.Tensor], stem: str = "imagenet"
) -> torchvision.models.ResNet:
    """torchvision's with `state_dict`, in evaluation mode; with another stem and other input channels where that has
    them.
    """
    with torch.device("meta"):  # no random weights are drawn
        module = torchvision.models.get_model(arch, weights=None, num_classes=classes)
        put_stem(module, stem, channels=state_dict["conv1.weight"].shape[1])
    module.load_state_dict(state_dict, strict=True, assign=True)
    return module.eval()


def put_stem(module: torchvision.models.ResNet, stem: str, *, channels: int = 3) -> None:
    """Gives torchvision's network one of our `STEMS`, for images of so many channels, in place."""
    wanted = STEMS[stem]
    if (wanted.size, channels) != (module.conv1.kernel_size[0], module.conv1.in_channels):
        module.conv1 = torch.nn.Conv2d(channels, 64, wanted.size, padding=wanted.size // 2, bias=False)
    module.conv1.stride = (wanted.stride, wanted.stride)
    if not wanted.pool:
        module.maxpool = torch.nn.Identity()


def stem_of(state_dict: Mapping[str, torch.Tensor], recorded: str | None = None) -> str:
    """Which of our `STEMS` a state_dict has: the `recorded` one where its shapes allow that, else as they say."""
    kernel = state_dict.get("conv1.weight")
    size = 3 if kernel is not None and kernel.shape[2:] == (3, 3) else 7
    likely = [name for name, stem in STEMS.items() if stem.size == size]
    return recorded if recorded in likely else likely[0]


def takes_gray(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Whether the first convolution, that of one of our `STEMS` otherwise, has one input channel."""
    kernel = state_dict.get("conv1.weight")
    shapes = [(64, 1, stem.size, stem.size) for stem in STEMS.values()]
    return kernel is not None and kernel.shape in shapes and keys.is_plain(kernel)


def with_colours(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A network of gray images as one of RGB images: the same outputs for gray in all three channels."""
    if not takes_gray(state_dict):
        return dict(state_dict)
    return {**state_dict, "conv1.weight": state_dict["conv1.weight"].float().repeat(1, 3, 1, 1) / 3}
