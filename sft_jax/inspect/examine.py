"""All examinations of a data set, from its pictures and their features."""

import numpy as np

from sft_jax.data.sources.listing import counted
from sft_jax.data.sources.pictures import Pictures
from sft_jax.inference.embedding import Embedded
from sft_jax.inspect.copies import clusters, contradictions, copies, pairs, shared_groups
from sft_jax.inspect.finding import ISSUES, Finding, ordered
from sft_jax.inspect.labels import wrong_labels
from sft_jax.inspect.looks import Look
from sft_jax.inspect.neighbours import neighbours, outliers
from sft_jax.inspect.quality import poor

# Classes are called unequal if one is more than so many times as large as another.
UNEQUAL = 3


def examine(pictures: Pictures, embedded: Embedded[Look], notices: list[str]) -> list[Finding]:
    """Finds faults of a data set, sorted by issue and the most suspicious first.

    Args:
      pictures: all pictures.
      embedded: measures and features of the readable ones.
      notices: receives a line about everything that could not be examined.
    """
    rows = embedded.rows
    looks = dict(zip(rows.tolist(), embedded.seen, strict=True))
    findings = poor(looks, embedded.problems, notices)
    parts, labels = splits(pictures), pictures.labels[rows]
    shared = shared_groups(pictures.groups, parts)
    if len(rows) < 2:
        notices.append("neither labels, copies nor outliers looked for: only one picture is readable")
        return _named(findings + shared, pictures)
    near = neighbours(embedded.features)
    found = pairs(embedded.seen, near)
    cluster = clusters(len(rows), found)
    # Places among the readable pictures, until they are turned into rows.
    certain = contradictions(found, labels, pictures.class_names)
    suspected = wrong_labels(embedded.features, labels, cluster, pictures.class_names, notices)
    known = {each.row for each in certain}
    placed = [
        *certain,
        *(each for each in suspected if each.row not in known),
        *copies(found, cluster, [parts[row] for row in rows]),
        *outliers(near, notices),
    ]
    findings += [
        each._replace(row=int(rows[each.row]), against=None if each.against is None else int(rows[each.against]))
        for each in placed
    ]
    leaks = {each.row for each in findings if each.issue == "leak"}
    findings += [each for each in shared if each.row not in leaks]
    return _named(findings, pictures)


def splits(pictures: Pictures) -> list[str | None]:
    """Returns the split of each picture; None for all if the source has none, and train for the rest if it has some."""
    if not any(pictures.parts):
        return list(pictures.parts)
    return [part or "train" for part in pictures.parts]


def _named(findings: list[Finding], pictures: Pictures) -> list[Finding]:
    """Sorts findings, and names the other pictures where nothing else is said of them."""
    return ordered(
        [
            each._replace(other=pictures.names[each.against]) if each.against is not None and not each.other else each
            for each in findings
        ]
    )


def totals(findings: list[Finding]) -> dict[str, int]:
    """Counts the findings of each issue."""
    return {issue: sum(each.issue == issue for each in findings) for issue in ISSUES}


def imbalance(pictures: Pictures) -> str:
    """Describes the sizes of the classes in one line."""
    counts = np.bincount(pictures.labels, minlength=len(pictures.class_names))
    most, least = int(counts.argmax()), int(counts.argmin())
    largest, smallest = (
        f"{pictures.class_names[label]!r} with {counted(int(counts[label]))}" for label in (most, least)
    )
    ratio = f", {counts[most] / counts[least]:.1f} times as many" if counts[least] else ""
    unequal = counts[most] > UNEQUAL * counts[least]
    remedy = "; see data.balance and regularization.class_weights" if unequal else ""
    return f"classes: {len(counts):,}, from {smallest} to {largest}{ratio}{remedy}"
