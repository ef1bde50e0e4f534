"""What the doctor found: line by line, and all together."""

import dataclasses
from typing import Any

OK, WARN, MISSING = "ok", "warn", "missing"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was looked at, and what was found.

    Attributes:
      name: what was looked at, a word or two.
      mark: "ok", "warn" (it works, but not as well as it could) or "missing" (it does not).
      text: what was found.
      remedies: command lines that mend it, one after the other.
    """

    name: str
    mark: str
    text: str
    remedies: tuple[str, ...] = ()

    def optional(self) -> "Finding":
        """The same of something that can be done without: a warning in place of an error, and nothing to be mended."""
        return dataclasses.replace(self, mark=WARN, remedies=()) if self.mark == MISSING else self

    def __str__(self) -> str:
        return f"{self.mark:<8}{self.name:<12}{self.text}"


@dataclasses.dataclass
class Report:
    """All that was found; --json prints it.

    Attributes:
      findings: in the order in which they were made.
      plan: of the run, line by line, with --config.
      costs: of the run at each size that was asked for, with --config.
    """

    findings: list[Finding] = dataclasses.field(default_factory=list)
    plan: list[str] = dataclasses.field(default_factory=list)
    costs: list[Any] = dataclasses.field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether nothing is missing."""
        return all(finding.mark != MISSING for finding in self.findings)
