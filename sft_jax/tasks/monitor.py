"""The metrics that can select the best epoch."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Monitor:
    """A validation metric that can select the best epoch.

    Attributes:
      name: its name in metrics.jsonl and as the config's `monitor`, e.g. "val_accuracy".
      words: its name in messages.
      lower_is_better: whether lower values are better, as for a loss.
      percent: whether to format it in per cent.
    """

    name: str
    words: str
    lower_is_better: bool = False
    percent: bool = True

    @property
    def figure(self) -> str:
        """Its name in `Task.summarize`."""
        return self.name.removeprefix("val_")

    def score(self, value: float) -> float:
        """Converts a value to a score, which is better the higher it is; calling it again converts back."""
        return -value if self.lower_is_better else value

    def rank(self, figures: Mapping[str, Any]) -> float:
        """Returns the score for the metrics of a split, see `Task.summarize`; -inf if it is not finite."""
        score = self.score(figures[self.figure])
        return score if math.isfinite(score) else -math.inf

    @property
    def worst(self) -> float:
        """The score of a useless network."""
        return 0.0 if self.percent and not self.lower_is_better else -math.inf

    def shown(self, value: float | None, digits: int = 2) -> str:
        """Formats a value: in per cent with `digits` decimals, otherwise with four decimals."""
        if value is None:
            return "-"
        return f"{value:.{digits}%}" if self.percent else f"{value:.4f}"
