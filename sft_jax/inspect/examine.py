"""All examinations of a data set, from what was measured of its examples."""

from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from sft_jax.data.sources.listing import counted
from sft_jax.inspect.copies import Pair, clusters, contradictions, copies, shared_groups
from sft_jax.inspect.finding import ISSUES, Finding, ordered
from sft_jax.inspect.labels import wrong_labels
from sft_jax.inspect.neighbours import Neighbours, neighbours, outliers

# Classes are called unequal if one is more than so many times as large as another.
UNEQUAL = 3


class Examples(Protocol):
    """The labelled images or texts of a source.

    Attributes:
      unit: what one is called.
      names, labels, class_names, parts, groups: see `Pictures`.
    """

    unit: ClassVar[str]

    @property
    def names(self) -> list[str]: ...  # noqa: D102
    @property
    def labels(self) -> np.ndarray: ...  # noqa: D102
    @property
    def class_names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def parts(self) -> list[str | None]: ...  # noqa: D102
    @property
    def groups(self) -> list[str | None]: ...  # noqa: D102

    def __len__(self) -> int: ...


class Measured(NamedTuple):
    """What is known of the readable examples.

    Attributes:
      rows: their rows among all, int [m], ascending.
      features: float32 [m, channels].
      faults: suspicions about the quality of examples, with rows among all.
      copies: finds the pairs of copies, of places among the readable ones, given their neighbours.
    """

    rows: np.ndarray
    features: np.ndarray
    faults: list[Finding]
    copies: Callable[[Neighbours], list[Pair]]


def examine(examples: Examples, measured: Measured, notices: list[str]) -> list[Finding]:
    """Finds faults of a data set, sorted by issue and the most suspicious first.

    Args:
      examples: all images or texts.
      measured: what was measured of the readable ones.
      notices: receives a line about everything that could not be examined.
    """
    rows, unit = measured.rows, examples.unit
    findings = list(measured.faults)
    parts, labels = splits(examples), examples.labels[rows]
    shared = shared_groups(examples.groups, parts)
    if any(examples.groups) and not any(parts):
        notices.append(
            "no group can be in two splits, because the data names none; those that training draws do not keep groups "
            "together"
        )
    if len(rows) < 2:
        notices.append(f"neither labels, copies nor outliers looked for: only one {unit} is readable")
        return _named(findings + shared, examples)
    near = neighbours(measured.features)
    found = measured.copies(near)
    cluster = clusters(len(rows), found)
    # Places among the readable ones, until they are turned into rows.
    certain = contradictions(found, labels, examples.class_names)
    suspected = wrong_labels(measured.features, labels, cluster, examples.class_names, notices, unit)
    known = {each.row for each in certain}
    placed = [
        *certain,
        *(each for each in suspected if each.row not in known),
        *copies(found, cluster, [parts[row] for row in rows]),
        *outliers(near, notices, unit),
    ]
    findings += [
        each._replace(row=int(rows[each.row]), against=None if each.against is None else int(rows[each.against]))
        for each in placed
    ]
    leaks = {each.row for each in findings if each.issue == "leak"}
    findings += [each for each in shared if each.row not in leaks]
    return _named(findings, examples)


def splits(examples: Examples) -> list[str | None]:
    """Returns the split of each; None for all if the source has none, and train for the rest if it has some."""
    if not any(examples.parts):
        return list(examples.parts)
    return [part or "train" for part in examples.parts]


def _named(findings: list[Finding], examples: Examples) -> list[Finding]:
    """Sorts findings, and names the other examples where nothing else is said of them."""
    return ordered(
        [
            each._replace(other=examples.names[each.against]) if each.against is not None and not each.other else each
            for each in findings
        ]
    )


def totals(findings: list[Finding]) -> dict[str, int]:
    """Counts the findings of each issue."""
    return {issue: sum(each.issue == issue for each in findings) for issue in ISSUES}


def imbalance(examples: Examples) -> str:
    """Describes the sizes of the classes in one line."""
    counts = np.bincount(examples.labels, minlength=len(examples.class_names))
    most, least = int(counts.argmax()), int(counts.argmin())
    largest, smallest = (
        f"{examples.class_names[label]!r} with {counted(int(counts[label]), examples.unit)}" for label in (most, least)
    )
    ratio = f", {counts[most] / counts[least]:.1f} times as many" if counts[least] else ""
    unequal = counts[most] > UNEQUAL * counts[least]
    remedy = "; see data.balance and regularization.class_weights" if unequal else ""
    return f"classes: {len(counts):,}, from {smallest} to {largest}{ratio}{remedy}"
