"""What the converters need to know about the reference implementation of a family of networks in torch."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torchvision

from convert.names import Dialect, namings
from sft_jax.errors import UserError
from sft_jax.models import architecture
from sft_jax.models.vit import MEAN
from sft_jax.models.weights import some_of

Tensors = dict[str, torch.Tensor]

# Sides in pixels of the images on which both networks are compared; at an odd one padding and strides show.
SIZES = (32, 33, 224)


def empty_network(arch: str, outputs: int, size: int | None = None) -> torch.nn.Module:
    """Returns torchvision's or timm's network on torch's meta device, which skips random initialisation.

    Args:
      arch: name of the network.
      outputs: size of the head.
      size: side of the images in pixels, for networks with position embeddings.
    """
    settings: dict[str, Any] = {"num_classes": outputs}
    if architecture(arch).reference == "torchvision":
        settings |= {} if size is None else {"image_size": size}
        return without_values(lambda: torchvision.models.get_model(arch, weights=None, **settings))
    import timm  # torchvision's networks do without it

    settings |= {} if size is None else {"img_size": size}
    settings |= {"global_pool": "avg"} if arch.endswith(MEAN) else {}
    return without_values(lambda: timm.create_model(arch.removesuffix(MEAN), **settings))


def without_values(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """Calls `make` on torch's meta device if that is possible.

    It is not where numbers are computed with tensors: in torchvision's RegNet, and by timm 1.0.9 and 1.0.20 for
    stochastic depth.
    """
    try:
        with torch.device("meta"):
            return make()
    except (RuntimeError, NotImplementedError):
        return make()


class Reference:
    """The torch side of a family. Subclasses override what differs; `families.REFERENCES` lists them.

    Attributes:
      title: what a network of the family is called in messages, e.g. "a ResNet".
      landmark: a name of the reference's that every network of the family has, for messages.
      body: prefixes of the reference's names outside the head. Files have heads of other shapes and under other names,
        which `heads.py` finds among the remaining tensors.
      channels_last: whether `stages` have their channels last.
      lists_tokens: whether stages whose outputs are maps of ours return them as lists of tokens, of square images.
      dense: whether heads are part of the network as they are, and not one linear layer of any name.
      unit: of `sizes`, for messages.
      axes: names of the leading axes of the module's inputs, which may have any size.
    """

    title = "a network of this family"
    landmark = ""
    body: tuple[str, ...] = ()
    channels_last = False
    lists_tokens = False
    dense = False
    unit = "px"
    axes: tuple[str, ...] = ("batch",)

    def module(self, arch: str, outputs: int, state_dict: Mapping[str, torch.Tensor], stem: str) -> torch.nn.Module:
        """Returns the network `arch` with `state_dict`, in evaluation mode."""
        raise NotImplementedError

    def stages(self, module: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """Returns the submodules whose outputs are compared with ours, under the names of our module's `stages`."""
        raise NotImplementedError

    def arranged(self, activations: torch.Tensor) -> torch.Tensor:
        """Returns the output of a stage as ours is: images have their channels last, tokens have them in both."""
        if activations.ndim == 4:
            return activations if self.channels_last else activations.permute(0, 2, 3, 1)
        return activations.unflatten(1, (math.isqrt(activations.shape[1]), -1)) if self.lists_tokens else activations

    def dialects(self, arch: str) -> Sequence[Dialect]:
        """Returns the naming schemes of `arch` in files, the reference's own first; empty if it has only that one."""
        return ()

    def width(self, state_dict: Mapping[str, torch.Tensor]) -> int | None:
        """Returns the number of inputs of a head, from the other tensors; None if unknown."""
        return None

    def sizes(self, arch: str) -> tuple[int, ...]:
        """Returns the sides in pixels of the images on which both networks are compared.

        Networks with position embeddings are compared at the size that these are for, see `parity.sizes`.
        """
        return SIZES

    def input_channels(self, module: torch.nn.Module) -> int:
        """Returns the number of input channels: 3, or 1 for gray images."""
        return 3

    def inputs(self, module: torch.nn.Module, size: int, count: int, seed: int) -> tuple[np.ndarray, ...]:
        """Returns `count` random examples of our network's inputs; gray images for a module with one channel."""
        images = np.random.default_rng(seed).standard_normal((count, size, size, 3), np.float32)
        if self.input_channels(module) == 1:
            images[..., 1:] = images[..., :1]
        return (images,)

    def given(self, module: torch.nn.Module, *inputs: np.ndarray) -> Tensors:
        """Returns inputs of our network as those of `module`, by name."""
        (images,) = inputs
        return {"images": torch.from_numpy(images[..., : self.input_channels(module)]).permute(0, 3, 1, 2)}

    def logits(self, module: torch.nn.Module, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the logits [n, outputs, ...] of `module` for the inputs that `given` returned."""
        return module(given["images"])

    def check(self, state_dict: Mapping[str, torch.Tensor], arch: str, source: str) -> None:
        """Raises UserError if a state_dict, that of the file `source`, does not belong to the family at all."""
        dialects = self.dialects(arch)
        if dialects and not namings(state_dict, dialects):
            raise UserError(
                f"{source} is not {self.title}: it has no {self.landmark}, only {some_of(list(state_dict))}"
            )

    def check_config(self, config: Mapping[str, Any], arch: str, *, head: bool, source: str) -> None:
        """Raises UserError if a config.json beside the file `source` says that its network is not `arch`.

        Args:
          config: its content; empty if there is none.
          arch: name of the network, which the shapes of the file fit.
          head: whether the file has a head.
          source: name of the file in messages.
        """

    def siblings(self, state_dict: Mapping[str, torch.Tensor]) -> list[str]:
        """Returns the networks of the family that a state_dict may belong to, by its names."""
        return []

    def stem_of(self, state_dict: Mapping[str, torch.Tensor], recorded: str | None) -> str:
        """Returns the `model.stem` of a state_dict: `recorded` if its shapes allow it, otherwise from the shapes."""
        return "imagenet"

    def whole(self, state_dict: Mapping[str, torch.Tensor], arch: str) -> Tensors:
        """Returns a state_dict of our network `arch` with the reference's constants, which `adapted` has removed."""
        return dict(state_dict)

    def adapted(self, state_dict: Mapping[str, torch.Tensor], arch: str) -> tuple[Tensors, list[str]]:
        """Returns the state_dict as our network `arch` takes it, and notices about what was changed beyond names."""
        return dict(state_dict), []
