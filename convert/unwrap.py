"""Which of the tensors in a checkpoint are the network: training scripts put them anywhere, and average them beside."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from convert.names import Naming, namings
from sft_jax.errors import UserError

Tensors = dict[str, torch.Tensor]

# Dictionaries of a checkpoint that hold no network, whatever tensors they hold.
NO_NETWORK = re.compile(r"optim|sched|scaler|callback|^(opt|amp|loops)$", re.IGNORECASE)
# Words in the name of weights that follow others: moving averages, teachers, momentum encoders.
AVERAGED = re.compile(r"(^|[._])(ema|swa|avg|averaged?|shadow|teacher|target|momentum|k|key)([._]|$)", re.IGNORECASE)
# Counters and profiles that programs leave in a state_dict; they change no output.
COUNTS = re.compile(r"(.*\.)?(n_averaged|total_ops|total_params)")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Tensors that may be the network.

    Attributes:
      path: the dictionaries that lead to them, joined by dots; "" for the file itself.
      tensors: all that stand there.
      namings: how those of each ResNet among them are called.
      naming: the one of these that is meant; None where there is no ResNet.
    """

    path: str
    tensors: Tensors
    namings: list[Naming]
    naming: Naming | None

    @property
    def key(self) -> str:
        """What `--key` chooses it by."""
        prefix = self.naming.prefix.rstrip(".") if self.naming else ""
        return ".".join(filter(None, (self.path, prefix)))

    def split(self) -> tuple[Tensors, Tensors]:
        """The ResNet's tensors under torchvision's names, and those that are no ResNet's, under their own."""
        if self.naming is None:
            return self.tensors, {}
        own, beside = {}, {}
        for name, tensor in self.tensors.items():
            # The longest prefix is the one of the module that it is in.
            inmost = max(filter(name.startswith, (naming.prefix for naming in self.namings)), key=len, default=None)
            if inmost == self.naming.prefix:
                own[self.naming.torchvision_name(name)] = tensor
            elif inmost is None:
                beside[name] = tensor
        return own, beside


def choose(content: Any, key: str | None, source: str) -> tuple[Candidate, list[str]]:
    """The network in what a file holds, and notices about where it was.

    Args:
      content: of the file.
      key: the one asked for, as `Candidate.key` or only its beginning; None where there should be no question.
      source: of the message.

    Raises:
      UserError: there is none, none of this key, or several of which none is the obvious one.
    """
    candidates = list(_candidates(content))
    if not candidates:
        raise UserError(
            f"{source} holds no state_dict (tensors by name); make one with torch.save(model.state_dict(), FILE)"
        )
    networks = [candidate for candidate in candidates if candidate.naming]
    if key is not None:
        known = [_flag(candidate, candidates) for candidate in networks or candidates if candidate.key]
        networks = [candidate for candidate in networks or candidates if f"{candidate.key}.".startswith(f"{key}.")]
        if not networks:
            raise UserError(f"{source} has no weights under {key!r}; use {' or '.join(known) or 'no --key at all'}")
    # Where nothing is a ResNet, the most tensors tell best what it is.
    networks = networks or [max(candidates, key=lambda candidate: len(candidate.tensors))]
    plain = [candidate for candidate in networks if not AVERAGED.search(candidate.key)] or networks
    chosen, *rivals = plain
    flags = {candidate.key: _flag(candidate, networks) for candidate in networks if candidate.key}
    # The file's own weights need no key, and have none.
    if chosen.key and not all(_same(chosen, rival) for rival in rivals):
        raise UserError(f"{source} holds {len(networks)} networks; choose one with {' or '.join(flags.values())}")
    others = [flags[other.key] for other in networks if other is not chosen and not _same(chosen, other)]
    return chosen, list(_notices(chosen, others))


def class_names_in(content: Any) -> tuple[str, ...] | None:
    """The names of the classes, where a training script recorded them in its checkpoint."""
    if not isinstance(content, Mapping):
        return None
    for place in (content, *(value for value in content.values() if isinstance(value, Mapping))):
        for name in ("class_names", "classes", "CLASSES", "class_to_idx"):
            if names := _listed(place.get(name)):
                return names
    return None


def _listed(names: Any) -> tuple[str, ...] | None:
    """Class names from a list of them or from their labels by name."""
    if isinstance(names, Mapping) and all(isinstance(label, int) for label in names.values()):
        labels = sorted(names, key=names.__getitem__)
        names = labels if [names[label] for label in labels] == list(range(len(labels))) else None
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None


def _candidates(content: Any) -> Iterator[Candidate]:
    """Of every dictionary with tensors, the outer ones first."""
    seen: set[int] = set()
    places: list[tuple[str, Any]] = [("", content)]
    while places:
        path, place = places.pop(0)
        if not isinstance(place, Mapping) or id(place) in seen:  # a pickle may refer to itself
            continue
        seen.add(id(place))
        named = {str(name): value for name, value in place.items()}
        tensors = {
            name: value for name, value in named.items() if torch.is_tensor(value) and not COUNTS.fullmatch(name)
        }
        if tensors:
            found: list[Naming] = namings(tensors)
            yield from (Candidate(path, tensors, found, naming) for naming in (found or (None,)))
        places += [
            (f"{path}.{name}" if path else name, value) for name, value in named.items() if not NO_NETWORK.search(name)
        ]


def _same(one: Candidate, other: Candidate) -> bool:
    """Whether both are the same weights: a module that two names lead to."""
    ours, theirs = one.split()[0], other.split()[0]
    try:
        return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    except RuntimeError:  # of kinds that cannot be compared
        return False


def _flag(candidate: Candidate, among: list[Candidate]) -> str:
    """What to type for one of several."""
    alone = candidate.path and [other.path for other in among].count(candidate.path) == 1
    return f"--key {candidate.path if alone else candidate.key}"


def _notices(chosen: Candidate, others: list[str]) -> Iterator[str]:
    if chosen.path:
        yield f"the state_dict was found under {chosen.path!r}"
    if others:
        yield f"there are other weights too, for {' or '.join(others)}"
    if chosen.naming is None:
        return
    if chosen.naming.prefix:
        where = "every key" if all(name.startswith(chosen.naming.prefix) for name in chosen.tensors) else "its keys"
        yield f"the prefix {chosen.naming.prefix!r} of {where} was dropped"
    if chosen.naming.dialect.title:
        yield f"its keys are {chosen.naming.dialect.title}; they were renamed to torchvision's"
