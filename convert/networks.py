"""The same network in torch and in Flax."""

from collections.abc import Mapping

import torch
import torchvision

from sft_jax.models import SHAPES, Functional, ResNet


def flax_network(arch: str, classes: int, stem: str = "imagenet") -> Functional:
    """Ours, with shapes in place of arrays."""
    return Functional.abstract(lambda rngs: ResNet(SHAPES[arch], classes, stem=stem, rngs=rngs))


def torch_network(
    arch: str, classes: int, state_dict: Mapping[str, torch.Tensor], stem: str = "imagenet"
) -> torchvision.models.ResNet:
    """torchvision's with `state_dict`, in evaluation mode. The stem "cifar" is our own and has to be put in."""
    module = torchvision.models.get_model(arch, weights=None, num_classes=classes)
    module.load_state_dict(state_dict, strict=True)
    if stem == "cifar":
        to_cifar_stem(module)
    return module.eval()


def to_cifar_stem(module: torchvision.models.ResNet) -> None:
    """Turns the stem of torchvision's network into our stem "cifar", in place."""
    module.conv1.stride = (1, 1)
    module.maxpool = torch.nn.Identity()
