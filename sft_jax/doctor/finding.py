"""Results of the doctor's checks, and the report that collects them."""

import dataclasses
from typing import Any

OK, WARN, MISSING = "ok", "warn", "missing"


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
      name: what was checked, in a word or two.
      mark: status: "ok", "warn" (works, but not as well as it could) or "missing" (does not work).
      text: the details.
      remedies: commands that fix it, in order.
    """

    name: str
    mark: str
    text: str
    remedies: tuple[str, ...] = ()

    def optional(self) -> "Finding":
        """Downgrades a missing item that is not required to a warning without remedies."""
        return dataclasses.replace(self, mark=WARN, remedies=()) if self.mark == MISSING else self

    def __str__(self) -> str:
        return f"{self.mark:<8}{self.name:<12}{self.text}"


@dataclasses.dataclass
class Report:
    """All results; --json prints it.

    Attributes:
      findings: in the order of the checks.
      plan: lines of the run's plan, with --config.
      costs: cost of the run at each requested size, with --config.
    """

    findings: list[Finding] = dataclasses.field(default_factory=list)
    plan: list[str] = dataclasses.field(default_factory=list)
    costs: list[Any] = dataclasses.field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether nothing required is missing."""
        return all(finding.mark != MISSING for finding in self.findings)
