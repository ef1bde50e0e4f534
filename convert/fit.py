"""Fits a state_dict to one of our networks, or says why it does not fit."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np
import torch
import torchvision

from convert import keys, names, networks
from sft_jax.errors import UserError
from sft_jax.models import ARCHITECTURES, Network
from sft_jax.models.resnet import VARIANTS
from sft_jax.models.weights import first_few, some_of

Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Fit:
    """The same weights in torch and in Flax.

    Attributes:
      arch, stem: architecture and stem of the network.
      classes: number of outputs of its head, 0 without one.
      network: our network; if the head is missing, its `fc` is the identity and outputs the features.
      arrays: the variables of `network`.
      module: the equivalent torchvision network, in evaluation mode.
      counters: see `keys.counters_of`.
      notices: what was cast or guessed.
    """

    arch: str
    stem: str
    classes: int
    network: Network
    arrays: dict[str, np.ndarray]
    module: torchvision.models.ResNet
    counters: dict[str, int]
    notices: list[str]

    def weights(self) -> dict[str, np.ndarray]:
        """Returns `arrays`, without the identity head if the state_dict has none."""
        return {key: array for key, array in self.arrays.items() if self.classes or not self.network.is_head(key)}


def fit(state_dict: Mapping[str, torch.Tensor], arch: str, source: str, stem: str | None = None) -> Fit:
    """Fits a state_dict under torchvision's names (see `sources.read`) to the network `arch`.

    Args:
      state_dict: has no `fc.*` if there is no head.
      arch: name of the network.
      source: name of the file in messages.
      stem: the stem recorded in the file, if any.

    Raises:
      UserError: it belongs to another network, or its head has one output.
    """
    if not names.namings(state_dict):
        raise UserError(
            f"{source} is not a ResNet of torchvision's family: it has no layer1.0.conv1.weight, only "
            f"{some_of(list(state_dict))}"
        )
    classes = state_dict["fc.weight"].shape[0] if "fc.weight" in state_dict else 0
    if classes == 1:
        raise UserError(
            f"{source} has one output instead of one per class; if its sigmoid is the probability of the second class, "
            f"prepend a row of zeros to fc.weight and fc.bias: w = torch.cat([0 * w, w]); otherwise delete both to "
            f"convert it without a head"
        )
    attempt = _attempt(state_dict, arch, stem)
    if attempt.problems:
        raise UserError(_refusal(state_dict, arch, source, attempt.problems))
    network, ours, notices = attempt.network, attempt.state_dict, attempt.notices
    if attempt.stem == "cifar3x3":
        notices.append("its first convolution is 3x3: assuming model.stem=cifar3x3, stride 1 without max-pool")
    theirs = dict(ours)
    if networks.takes_gray(state_dict):
        notices.append("it takes gray images: its first kernel was divided by 3 and repeated for the RGB channels")
        theirs["conv1.weight"] = state_dict["conv1.weight"].float()
    module = networks.torch_network(arch, _outputs(state_dict, arch), theirs, attempt.stem)
    arrays, counters = keys.to_flax(ours, network), keys.counters_of(ours)
    return Fit(arch, attempt.stem, classes, network, arrays, module, counters, notices)


@dataclasses.dataclass(frozen=True)
class _Attempt:
    """An attempt to fit: stem, network, the state_dict for it, notices, and problems that prevent it."""

    stem: str
    network: Network
    state_dict: Tensors
    notices: list[str]
    problems: list[str]


def _attempt(state_dict: Mapping[str, torch.Tensor], arch: str, recorded: str | None = None) -> _Attempt:
    outputs = _outputs(state_dict, arch)
    # A missing head is replaced by the identity, which outputs the features.
    head = {} if "fc.weight" in state_dict else {"fc.weight": torch.eye(outputs), "fc.bias": torch.zeros(outputs)}
    stem = networks.stem_of(state_dict, recorded)
    network = networks.flax_network(arch, outputs, stem)
    fitted, notices = keys.cast(networks.with_colours(state_dict) | head, network)
    return _Attempt(stem, network, fitted, notices, keys.problems(fitted, network))


def _outputs(state_dict: Mapping[str, torch.Tensor], arch: str) -> int:
    return state_dict["fc.weight"].shape[0] if "fc.weight" in state_dict else ARCHITECTURES[arch].channels[-1]


def _refusal(state_dict: Mapping[str, torch.Tensor], arch: str, source: str, problems: list[str]) -> str:
    """Says in a few lines what is wrong, or which other network fits."""
    layers = tuple(
        len({match[1] for key in state_dict if (match := re.match(rf"layer{stage}\.(\d+)\.", key))})
        for stage in (1, 2, 3, 4)
    )
    for other, shape in VARIANTS.items():
        if shape.layers == layers and not _attempt(state_dict, other).problems:
            return f"{source} does not fit {arch}, but fits {other}: add --arch {other}"
    return "\n  ".join([f"{source} does not fit {arch}, nothing was written:", *first_few(problems)])
