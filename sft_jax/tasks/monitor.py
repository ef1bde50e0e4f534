"""The figure that chooses the best epoch: `monitor`."""

import math
from collections.abc import Mapping
from typing import Any

# Config value, which is its name in metrics.jsonl -> in words.
MONITORS = {
    "val_accuracy": "validation accuracy",
    "val_balanced_accuracy": "balanced validation accuracy",
    "val_macro_f1": "macro F1 of the validation images",
    "val_loss": "validation loss",
}
LOWER_IS_BETTER = {"val_loss"}


def score(monitor: str, value: float) -> float:
    """A value of `monitor` as one that is better the higher it is; the same call takes it back."""
    return -value if monitor in LOWER_IS_BETTER else value


def rank(monitor: str, figures: Mapping[str, Any]) -> float:
    """The `score` of the figures of the validation images, see `report.results.summarize`; lowest where not finite."""
    found = score(monitor, figures[monitor.removeprefix("val_")])
    return found if math.isfinite(found) else -math.inf


def shown(monitor: str, value: float | None, digits: int = 2) -> str:
    """A value of `monitor` for the console: a share in per cent, a loss as it is."""
    if value is None:
        return "-"
    return f"{value:.4f}" if monitor in LOWER_IS_BETTER else f"{value:.{digits}%}"
