"""The same network in torch and in Flax."""

from collections.abc import Mapping

import torch
import torchvision

from sft_jax.models import SHAPES, STEMS, Functional, ResNet


def flax_network(arch: str, classes: int, stem: str = "imagenet") -> Functional:
    """Ours, with shapes in place of arrays."""
    return Functional.abstract(lambda rngs: ResNet(SHAPES[arch], classes, stem=stem, rngs=rngs))


def torch_network(
    arch: str, classes: int, state_dict: Mapping[str, torch.Tensor], stem: str = "imagenet"
) -> torchvision.models.ResNet:
    """torchvision's with `state_dict`, in evaluation mode; with another stem and other input channels where that has
    them.
    """
    module = torchvision.models.get_model(arch, weights=None, num_classes=classes)
    put_stem(module, stem, channels=state_dict["conv1.weight"].shape[1])
    module.load_state_dict(state_dict, strict=True)
    return module.eval()


def put_stem(module: torchvision.models.ResNet, stem: str, *, channels: int = 3) -> None:
    """Gives torchvision's network one of our `STEMS`, for images of so many channels, in place."""
    wanted = STEMS[stem]
    if (wanted.size, channels) != (module.conv1.kernel_size[0], module.conv1.in_channels):
        module.conv1 = torch.nn.Conv2d(channels, 64, wanted.size, padding=wanted.size // 2, bias=False)
    module.conv1.stride = (wanted.stride, wanted.stride)
    if not wanted.pool:
        module.maxpool = torch.nn.Identity()


def stem_of(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Which of our `STEMS` a state_dict has, as far as its shapes tell: "cifar" has those of "imagenet"."""
    kernel = state_dict.get("conv1.weight")
    return "cifar3x3" if kernel is not None and kernel.shape[2:] == (3, 3) else "imagenet"
