"""Finds the network in a training checkpoint, which may nest it anywhere and contain averaged copies of it."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from convert.names import Dialect, Naming, namings
from sft_jax.errors import UserError

Tensors = dict[str, torch.Tensor]

# Entries of a checkpoint that never contain the network.
NO_NETWORK = re.compile(r"optim|sched|scaler|callback|^(opt|amp|loops)$", re.IGNORECASE)
# Names of derived weights: moving averages, teachers, momentum encoders.
AVERAGED = re.compile(r"(^|[._])(ema|swa|avg|averaged?|shadow|teacher|target|momentum|k|key)([._]|$)", re.IGNORECASE)
# Counters and profiling entries that affect no output.
COUNTS = re.compile(r"(.*\.)?(n_averaged|total_ops|total_params)")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Tensors that may be the network.

    Attributes:
      path: keys of the nested dictionaries that contain them, joined by dots; "" for the top level.
      tensors: all tensors at that path.
      namings: the naming of each network of the family among them.
      naming: the naming of this candidate; None if there is no such network.
    """

    path: str
    tensors: Tensors
    namings: list[Naming]
    naming: Naming | None

    @property
    def key(self) -> str:
        """The value of `--key` that selects it."""
        prefix = self.naming.prefix.rstrip(".") if self.naming else ""
        return ".".join(filter(None, (self.path, prefix)))

    def split(self) -> tuple[Tensors, Tensors]:
        """Returns the network's tensors under the reference's names, and tensors of no network under their own."""
        if self.naming is None:
            return self.tensors, {}
        own, beside = {}, {}
        for name, tensor in self.tensors.items():
            # A tensor belongs to the network with the longest matching prefix.
            innermost = max(filter(name.startswith, (naming.prefix for naming in self.namings)), key=len, default=None)
            if innermost == self.naming.prefix:
                own[self.naming.reference_name(name)] = tensor
            elif innermost is None:
                beside[name] = tensor
        return own, beside


def choose(
    content: Any, dialects: Sequence[Dialect], key: str | None, source: str, reference: str
) -> tuple[Candidate, list[str]]:
    """Chooses the network in a file; also returns notices about where it was.

    Args:
      content: the content of the file.
      dialects: the naming schemes of the wanted family.
      key: `Candidate.key` of the wanted network, or its first components; None to choose automatically.
      source: name of the file in messages.
      reference: the library whose names are the reference, for messages.

    Raises:
      UserError: there is no network, none of this key, or no obvious choice among several.
    """
    candidates = list(_candidates(content, dialects))
    if not candidates:
        raise UserError(
            f"{source} contains no state_dict (tensors by name); create one with torch.save(model.state_dict(), FILE)"
        )
    networks = [candidate for candidate in candidates if candidate.naming]
    if key is not None:
        known = [_flag(candidate, candidates) for candidate in networks or candidates if candidate.key]
        networks = [candidate for candidate in networks or candidates if f"{candidate.key}.".startswith(f"{key}.")]
        if not networks:
            raise UserError(f"{source} has no weights under {key!r}; use {' or '.join(known) or 'no --key at all'}")
    # If nothing belongs to the family, the candidate with the most tensors makes for the best error message.
    networks = networks or [max(candidates, key=lambda candidate: len(candidate.tensors))]
    plain = [candidate for candidate in networks if not AVERAGED.search(candidate.key)] or networks
    chosen, *rivals = plain
    flags = {candidate.key: _flag(candidate, networks) for candidate in networks if candidate.key}
    # Weights at the top level have no key, and win.
    if chosen.key and not all(_same(chosen, rival) for rival in rivals):
        raise UserError(f"{source} contains {len(networks)} networks; choose one with {' or '.join(flags.values())}")
    others = [flags[other.key] for other in networks if other is not chosen and not _same(chosen, other)]
    return chosen, list(_notices(chosen, others, reference))


def class_names_in(content: Any) -> tuple[str, ...] | None:
    """Returns the class names if a training script recorded them in its checkpoint."""
    if not isinstance(content, Mapping):
        return None
    for place in (content, *(value for value in content.values() if isinstance(value, Mapping))):
        for name in ("class_names", "classes", "CLASSES", "class_to_idx"):
            if names := _listed(place.get(name)):
                return names
    return None


def _listed(names: Any) -> tuple[str, ...] | None:
    """Returns class names from a list of names, or from a dictionary of labels by name."""
    if isinstance(names, Mapping) and all(isinstance(label, int) for label in names.values()):
        labels = sorted(names, key=names.__getitem__)
        names = labels if [names[label] for label in labels] == list(range(len(labels))) else None
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None


def _candidates(content: Any, dialects: Sequence[Dialect]) -> Iterator[Candidate]:
    """Yields a candidate for each network in each dictionary with tensors, outer dictionaries first."""
    seen: set[int] = set()
    places: list[tuple[str, Any]] = [("", content)]
    while places:
        path, place = places.pop(0)
        if not isinstance(place, Mapping) or id(place) in seen:  # a pickle may contain cycles
            continue
        seen.add(id(place))
        named = {str(name): value for name, value in place.items()}
        tensors = {
            name: value for name, value in named.items() if torch.is_tensor(value) and not COUNTS.fullmatch(name)
        }
        if tensors:
            found: list[Naming] = namings(tensors, dialects)
            yield from (Candidate(path, tensors, found, naming) for naming in (found or (None,)))
        places += [
            (f"{path}.{name}" if path else name, value) for name, value in named.items() if not NO_NETWORK.search(name)
        ]


def _same(one: Candidate, other: Candidate) -> bool:
    """Returns whether both have the same weights, as when two names refer to one module."""
    ours, theirs = one.split()[0], other.split()[0]
    try:
        return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    except RuntimeError:  # some kinds of tensors cannot be compared
        return False


def _flag(candidate: Candidate, among: list[Candidate]) -> str:
    """Returns the flag that selects one of several candidates."""
    alone = candidate.path and [other.path for other in among].count(candidate.path) == 1
    return f"--key {candidate.path if alone else candidate.key}"


def _notices(chosen: Candidate, others: list[str], reference: str) -> Iterator[str]:
    if chosen.path:
        yield f"using the state_dict under {chosen.path!r}"
    if others:
        yield f"other weights are available with {' or '.join(others)}"
    if chosen.naming is None:
        return
    if chosen.naming.prefix:
        where = "every key" if all(name.startswith(chosen.naming.prefix) for name in chosen.tensors) else "its keys"
        yield f"removed the prefix {chosen.naming.prefix!r} from {where}"
    if chosen.naming.dialect.title:
        yield f"its keys are {chosen.naming.dialect.title}; renamed to {reference}'s"
