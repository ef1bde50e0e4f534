"""Fits a state_dict to one of our networks, or says why it does not fit."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from convert import keys
from convert.families import REFERENCES, flax_network, reference_of
from convert.names import namings
from convert.reference import Reference
from sft_jax.errors import UserError
from sft_jax.models import ARCHITECTURES, Network, architecture
from sft_jax.models.weights import first_few

Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Fit:
    """The same weights in torch and in Flax.

    Attributes:
      arch, stem: architecture and stem of the network.
      classes: number of outputs of its head, 0 without one.
      network: our network; if the head is missing, it is the identity and outputs the features.
      arrays: the variables of `network`.
      module: the equivalent network in torch, in evaluation mode.
      counters: see `keys.counters_of`.
      notices: what was cast or guessed.
    """

    arch: str
    stem: str
    classes: int
    network: Network
    arrays: dict[str, np.ndarray]
    module: torch.nn.Module
    counters: dict[str, int]
    notices: list[str]

    def weights(self) -> dict[str, np.ndarray]:
        """Returns `arrays`, without the identity head if the state_dict has none."""
        return {key: array for key, array in self.arrays.items() if self.classes or not self.network.is_head(key)}


def fit(state_dict: Mapping[str, torch.Tensor], arch: str, source: str, stem: str | None = None) -> Fit:
    """Fits a state_dict under the reference's names (see `sources.read`) to the network `arch`.

    Args:
      state_dict: has no tensors of the head if there is none.
      arch: name of the network.
      source: name of the file in messages.
      stem: the stem recorded in the file, if any.

    Raises:
      UserError: it belongs to another network, or its head has one output.
    """
    reference, head = reference_of(arch), _head(arch)
    _check_family(state_dict, arch, source)
    classes = state_dict[f"{head}.weight"].shape[0] if f"{head}.weight" in state_dict else 0
    if classes == 1:
        raise UserError(
            f"{source} has one output instead of one per class; if its sigmoid is the probability of the second class, "
            f"prepend a row of zeros to {head}.weight and {head}.bias: w = torch.cat([0 * w, w]); otherwise delete "
            f"both to convert it without a head"
        )
    attempt = _attempt(state_dict, arch, stem)
    if attempt.problems:
        raise UserError(_refusal(state_dict, arch, source, attempt.problems))
    network, ours = attempt.network, attempt.state_dict
    theirs = {key: state_dict[key].float() if _is_adapted(key, state_dict, ours) else ours[key] for key in ours}
    module = reference.module(arch, _outputs(state_dict, arch), theirs, attempt.stem)
    arrays, counters = keys.to_flax(ours, network), keys.counters_of(ours)
    return Fit(arch, attempt.stem, classes, network, arrays, module, counters, attempt.notices)


def _is_adapted(key: str, state_dict: Mapping[str, torch.Tensor], ours: Tensors) -> bool:
    """Returns whether our network takes a tensor in another shape than its own module in torch."""
    return key in state_dict and state_dict[key].shape != ours[key].shape


@dataclasses.dataclass(frozen=True)
class _Attempt:
    """An attempt to fit: stem, network, the state_dict for it, notices, and problems that prevent it."""

    stem: str
    network: Network
    state_dict: Tensors
    notices: list[str]
    problems: list[str]


def _attempt(state_dict: Mapping[str, torch.Tensor], arch: str, recorded: str | None = None) -> _Attempt:
    outputs, head = _outputs(state_dict, arch), _head(arch)
    # A missing head is replaced by the identity, which outputs the features.
    identity = {f"{head}.weight": torch.eye(outputs), f"{head}.bias": torch.zeros(outputs)}
    reference = reference_of(arch)
    if reference.dense:
        identity = {}
    stem = reference.stem_of(state_dict, recorded)
    adapted, notices = reference.adapted(state_dict, arch)
    network = flax_network(arch, outputs, stem, keys.image_size(adapted, architecture(arch)))
    fitted, casts = keys.cast(adapted | ({} if f"{head}.weight" in state_dict else identity), network)
    return _Attempt(stem, network, fitted, casts + notices, keys.problems(fitted, network))


def _outputs(state_dict: Mapping[str, torch.Tensor], arch: str) -> int:
    weight = state_dict.get(f"{_head(arch)}.weight")
    return architecture(arch).width if weight is None else weight.shape[0]


def _head(arch: str) -> str:
    """Returns the reference's name of the head, or of its last layer."""
    return architecture(arch).module_path(architecture(arch).last)


def _check_family(state_dict: Mapping[str, torch.Tensor], arch: str, source: str) -> None:
    """Raises UserError if a state_dict has none of the names that files of `arch` have."""
    reference = reference_of(arch)
    try:
        reference.check(state_dict, arch, source)
    except UserError:
        if others := list(_fitting(state_dict)):
            raise UserError(
                f"{source} is not {reference.title}, but fits {' and '.join(others)}: add --arch {' or '.join(others)}"
            ) from None
        raise


def _fitting(state_dict: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Yields the networks whose bodies a state_dict, under the names of its file, fits."""
    for arch in ARCHITECTURES:
        reference = REFERENCES.get(architecture(arch).family, Reference())
        for naming in namings(state_dict, reference.dialects(arch)):
            own = {name: tensor for name, tensor in state_dict.items() if name.startswith(naming.prefix)}
            named = {naming.reference_name(name): tensor for name, tensor in own.items()}
            body = {name: tensor for name, tensor in named.items() if name.startswith(reference.body)}
            if arch in reference.siblings(body) and not _attempt(body, arch).problems:
                yield arch
                break


def _refusal(state_dict: Mapping[str, torch.Tensor], arch: str, source: str, problems: list[str]) -> str:
    """Says in a few lines what is wrong, or which other network fits."""
    siblings = reference_of(arch).siblings(state_dict)
    others = [other for other in siblings if not _attempt(state_dict, other).problems]
    family = architecture(arch).family
    if others := others or [other for other in _fitting(state_dict) if architecture(other).family != family]:
        return f"{source} does not fit {arch}, but fits {' and '.join(others)}: add --arch {' or '.join(others)}"
    return "\n  ".join([f"{source} does not fit {arch}, nothing was written:", *first_few(problems)])
