"""Translates the tensor names of other libraries to those of a network's reference implementation.

Libraries add a prefix to every name (`module.`, `model.backbone.`), and some use their own names. Each family lists the
naming schemes that it knows, see `Reference.dialects`; for heads see `heads.py`.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence

Replacement = str | Callable[[re.Match], str]
# Begins the pattern `Dialect.first`.
PREFIX = r"(?P<prefix>(?:.*\.)?)"


@dataclasses.dataclass(frozen=True)
class Dialect:
    """The naming scheme of a library.

    Attributes:
      title: whose names they are, None for the reference's.
      first: matches one name that every network of the family has; the group `prefix` is the prefix of all names.
      rules: pairs of a pattern for whole names and its replacement; the first match wins.
    """

    title: str | None
    first: re.Pattern
    rules: tuple[tuple[str, Replacement], ...] = ()


@dataclasses.dataclass(frozen=True)
class Naming:
    """The naming scheme and prefix of one network in a file."""

    dialect: Dialect
    prefix: str

    def reference_name(self, name: str) -> str:
        """Translates a name in the file that has the prefix to the reference's."""
        name = name.removeprefix(self.prefix)
        for pattern, replacement in self.dialect.rules:
            if match := re.fullmatch(pattern, name):
                return match.expand(replacement) if isinstance(replacement, str) else replacement(match)
        return name


def namings(names: Iterable[str], dialects: Sequence[Dialect]) -> list[Naming]:
    """Returns the naming of each network in a file, in the order of its names; a file may contain several."""
    all_matches = [
        Naming(dialect, match["prefix"])
        for name in names
        for dialect in dialects
        if (match := dialect.first.fullmatch(name))
    ]
    return list(dict.fromkeys(all_matches))
