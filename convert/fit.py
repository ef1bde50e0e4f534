"""A state_dict as the weights of one of our networks, or why it is none."""

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
    """The same weights on both sides.

    Attributes:
      arch, stem: of the network.
      classes: outputs of its head, 0 where it has none.
      network: ours. In place of a head that is missing its `fc` gives the features themselves.
      arrays: of `network`.
      module: torchvision's of the same function, in evaluation mode.
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
        """`arrays` less the head where there is none."""
        return {key: array for key, array in self.arrays.items() if self.classes or not self.network.is_head(key)}


def fit(state_dict: Mapping[str, torch.Tensor], arch: str, source: str, stem: str | None = None) -> Fit:
    """The network `arch` with a state_dict under torchvision's names (see `sources.read`).

    Args:
      state_dict: without `fc.*` where it has no head.
      arch: the network.
      source: of the message.
      stem: the one that the file records, if any.

    Raises:
      UserError: it is another network's, or its head has one output.
    """
    if not names.namings(state_dict):
        raise UserError(
            f"{source} is no ResNet of torchvision's family: no layer1.0.conv1.weight is among its tensors "
            f"{some_of(list(state_dict))}"
        )
    classes = state_dict["fc.weight"].shape[0] if "fc.weight" in state_dict else 0
    if classes == 1:
        raise UserError(
            f"{source} has one output, which is no classifier of two classes; where its sigmoid is the second one's "
            f"probability, put a row of zeros before it: for both fc.weight and fc.bias (w), torch.cat([0 * w, w]); "
            f"or delete fc.weight and fc.bias to convert it without a head"
        )
    attempt = _attempt(state_dict, arch, stem)
    if attempt.problems:
        raise UserError(_refusal(state_dict, arch, source, attempt.problems))
    network, ours, notices = attempt.network, attempt.state_dict, attempt.notices
    if attempt.stem == "cifar3x3":
        notices.append("its first convolution is 3x3: taken for model.stem=cifar3x3, stride 1 without a max-pool")
    theirs = dict(ours)
    if networks.takes_gray(state_dict):
        notices.append("it takes gray images: its first kernel was divided by 3 and repeated for red, green and blue")
        theirs["conv1.weight"] = state_dict["conv1.weight"].float()
    module = networks.torch_network(arch, _outputs(state_dict, arch), theirs, attempt.stem)
    arrays, counters = keys.to_flax(ours, network), keys.counters_of(ours)
    return Fit(arch, attempt.stem, classes, network, arrays, module, counters, notices)


@dataclasses.dataclass(frozen=True)
class _Attempt:
    """Of fitting: stem and network, what it would get, notices, and what keeps it from that."""

    stem: str
    network: Network
    state_dict: Tensors
    notices: list[str]
    problems: list[str]


def _attempt(state_dict: Mapping[str, torch.Tensor], arch: str, recorded: str | None = None) -> _Attempt:
    outputs = _outputs(state_dict, arch)
    # In place of a head that is missing, one that gives the features themselves.
    head = {} if "fc.weight" in state_dict else {"fc.weight": torch.eye(outputs), "fc.bias": torch.zeros(outputs)}
    stem = networks.stem_of(state_dict, recorded)
    network = networks.flax_network(arch, outputs, stem)
    fitted, notices = keys.cast(networks.with_colours(state_dict) | head, network)
    return _Attempt(stem, network, fitted, notices, keys.problems(fitted, network))


def _outputs(state_dict: Mapping[str, torch.Tensor], arch: str) -> int:
    return state_dict["fc.weight"].shape[0] if "fc.weight" in state_dict else ARCHITECTURES[arch].channels[-1]


def _refusal(state_dict: Mapping[str, torch.Tensor], arch: str, source: str, problems: list[str]) -> str:
    """What is wrong in a few lines, or which other network it is."""
    layers = tuple(
        len({match[1] for key in state_dict if (match := re.match(rf"layer{stage}\.(\d+)\.", key))})
        for stage in (1, 2, 3, 4)
    )
    for other, shape in VARIANTS.items():
        if shape.layers == layers and not _attempt(state_dict, other).problems:
            return f"{source} is no {arch} but fits {other}: add --arch {other}"
    return "\n  ".join([f"{source} does not fit {arch}, nothing was written:", *first_few(problems)])
