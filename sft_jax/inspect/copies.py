"""Examples that occur twice, the same or nearly so, within a split or across splits; groups across splits."""

import collections
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sft_jax.data.sources.part_names import PARTS
from sft_jax.inspect.finding import Finding
from sft_jax.inspect.looks import Look
from sft_jax.inspect.neighbours import Neighbours
from sft_jax.inspect.quality import is_blank

# Two pictures are nearly the same if the cosine of their features is at least this, and at most so many of the 64 bits
# of their perceptual hashes differ. Either alone takes different flowers before the same background for copies.
SIMILAR, BITS = 0.85, 10


class Pair(NamedTuple):
    """Two examples that are the same (similarity 1) or nearly so, `one` before `other`."""

    one: int
    other: int
    similarity: float
    exact: bool


def same(contents: Iterable[Hashable], *, exact: bool) -> Iterator[Pair]:
    """Yields pairs of the same contents, which are all of the examples if `exact`; each with the first of them."""
    first: dict[Hashable, int] = {}
    for place, content in enumerate(contents):
        start = first.setdefault(content, place)
        if start != place:
            yield Pair(start, place, 1.0, exact)


def pairs(looks: Sequence[Look], near: Neighbours) -> list[Pair]:
    """Finds pairs of copies; of more than two pictures with the same pixels, each is paired with the first."""
    found = {(pair.one, pair.other): pair for pair in same((seen.digest for seen in looks), exact=True)}
    hashes = np.array([seen.hashes for seen in looks])
    cosines = 1 - near.distances**2 / 2
    # One of the two may be mirrored.
    bits = np.bitwise_count(hashes[:, None, :1] ^ hashes[near.rows]).min(-1)
    for place, column in np.argwhere((cosines >= SIMILAR) & (bits <= BITS)).tolist():
        one, other = sorted((place, int(near.rows[place, column])))
        # Blank pictures are all alike.
        if looks[one].digest != looks[other].digest and not is_blank(looks[one]) and not is_blank(looks[other]):
            found[one, other] = Pair(one, other, float(cosines[place, column]), False)
    return list(found.values())


def clusters(count: int, found: Sequence[Pair]) -> np.ndarray:
    """Numbers the sets of examples that are connected by pairs, int [count]."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones, others = [pair.one for pair in found], [pair.other for pair in found]
    graph = coo_array((np.ones(len(found)), (ones, others)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def copies(found: Sequence[Pair], cluster: np.ndarray, parts: Sequence[str | None]) -> list[Finding]:
    """Returns a finding for every example of a cluster but the one to keep, which is of the test split if possible.

    It is a leak if the cluster has one of another split, which goes before it: those of training go first.
    """
    partners: dict[int, list[tuple[bool, float, int]]] = collections.defaultdict(list)
    for pair in found:
        partners[pair.one].append((pair.exact, pair.similarity, pair.other))
        partners[pair.other].append((pair.exact, pair.similarity, pair.one))
    members: dict[int, list[int]] = collections.defaultdict(list)
    for row in sorted(partners, key=lambda row: (_rank(parts[row]), row)):
        members[int(cluster[row])].append(row)
    findings = []
    for rows in members.values():
        for number, row in enumerate(rows[1:], 1):
            kept = rows[:number]
            elsewhere = [other for other in kept if parts[other] != parts[row]]
            choice = set(elsewhere or kept)
            # The one to name may only be connected through others.
            through = (*max(partners[row])[:2], min(choice))
            exact, similarity, other = max(
                (partner for partner in partners[row] if partner[2] in choice), default=through
            )
            issue = "leak" if elsewhere else "duplicate" if exact else "near_duplicate"
            findings.append(Finding(row, issue, similarity, "", other))
    return findings


def shared_groups(groups: Sequence[str | None], parts: Sequence[str | None]) -> list[Finding]:
    """Returns a leak for every example of a group that is also in a split to be kept rather, see `copies`."""
    members: dict[str, list[int]] = collections.defaultdict(list)
    for row, group in enumerate(groups):
        if group is not None:
            members[group].append(row)
    findings = []
    for rows in members.values():
        keep = min(rows, key=lambda row: (_rank(parts[row]), row))
        findings += [Finding(row, "leak", 1.0, "", keep) for row in rows if parts[row] != parts[keep]]
    return findings


def _rank(part: str | None) -> int:
    """Orders splits: test, validation, others, training."""
    order = {name: place for place, name in enumerate(reversed(PARTS))}
    return 2 * order[part] if part in order else 2 * order["train"] - 1 if part else 2 * order["train"]


def contradictions(found: Sequence[Pair], labels: np.ndarray, class_names: Sequence[str]) -> list[Finding]:
    """Returns a suspected label for every example of which the same has another label; one of the two is wrong."""
    findings: dict[int, Finding] = {}
    for pair in found:
        if pair.exact and labels[pair.one] != labels[pair.other]:
            for row, against in ((pair.one, pair.other), (pair.other, pair.one)):
                findings.setdefault(row, Finding(row, "label", 1.0, class_names[labels[against]], against))
    return list(findings.values())
