"""A suspicion about one example."""

from typing import NamedTuple

# In the order of the page and the table.
ISSUES = ("label", "leak", "duplicate", "near_duplicate", "outlier", "quality")
# What `quality` says of a file that cannot be decoded begins with it.
UNREADABLE = "unreadable"


class Finding(NamedTuple):
    """A suspicion about one picture.

    Attributes:
      row: of the example among those of the source.
      issue: one of `ISSUES`.
      score: how suspicious it is, the larger the more. label: 1 minus the probability of its label, 1 if the same
        pixels, or text, have another label too; leak, duplicate, near_duplicate: cosine similarity of the features, 1
        for the same pixels, words or group; outlier: distance to its neighbours, 0 to 2; quality: 0 to 1.
      other: the more probable class, the other file, or what is wrong with it.
      against: row of the other file; None if there is none.
    """

    row: int
    issue: str
    score: float
    other: str
    against: int | None = None


def ordered(findings: list[Finding]) -> list[Finding]:
    """Sorts findings by issue, the most suspicious first."""
    return sorted(findings, key=lambda found: (ISSUES.index(found.issue), -found.score, found.row))
