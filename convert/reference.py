"""What the converters need to know about the reference implementation of a family of networks in torch."""

from collections.abc import Mapping

import torch

Tensors = dict[str, torch.Tensor]


class Reference:
    """The torch side of a family. Subclasses override what differs; `families.REFERENCES` lists them."""

    def module(self, arch: str, outputs: int, state_dict: Mapping[str, torch.Tensor], stem: str) -> torch.nn.Module:
        """Returns the network `arch` with `state_dict`, in evaluation mode."""
        raise NotImplementedError

    def stages(self, module: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """Returns the submodules whose outputs are compared with ours, under the names of our module's `stages`."""
        raise NotImplementedError

    def input_channels(self, module: torch.nn.Module) -> int:
        """Returns the number of input channels: 3, or 1 for gray images."""
        return 3

    def check(self, state_dict: Mapping[str, torch.Tensor], source: str) -> None:
        """Raises UserError if a state_dict, that of the file `source`, does not belong to the family at all."""

    def siblings(self, state_dict: Mapping[str, torch.Tensor]) -> list[str]:
        """Returns the networks of the family that a state_dict may belong to, by its names."""
        return []

    def stem_of(self, state_dict: Mapping[str, torch.Tensor], recorded: str | None) -> str:
        """Returns the `model.stem` of a state_dict: `recorded` if its shapes allow it, otherwise from the shapes."""
        return "imagenet"

    def adapted(self, state_dict: Mapping[str, torch.Tensor]) -> tuple[Tensors, list[str]]:
        """Returns the state_dict as our network takes it, and notices about what was changed beyond names."""
        return dict(state_dict), []
