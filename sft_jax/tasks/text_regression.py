"""Text regression: one number per text, or per pair of texts, e.g. a rating or how similar two sentences are."""

import dataclasses
from typing import Any

import numpy as np

from sft_jax.tasks.base import Kept
from sft_jax.tasks.monitor import Monitor
from sft_jax.tasks.regression import Regression
from sft_jax.tasks.text_inputs import TextInputs


@dataclasses.dataclass(frozen=True)
class TextRegression(TextInputs, Regression):
    """Text regression with the target "number", float32 [n]."""

    groups = (*TextInputs.groups, *Regression.groups)
    refused = {**TextInputs.refused, **Regression.refused}  # noqa: RUF012  # never changed
    monitors = {  # noqa: RUF012
        "val_spearman": Monitor("val_spearman", "Spearman correlation", percent=False),
        "val_pearson": Monitor("val_pearson", "Pearson correlation", percent=False),
        **Regression.monitors,
    }

    def summarize(self, sums: Kept) -> dict[str, Any]:
        """See `Regression`; adds the rank correlation of Spearman and that of Pearson, 0 if numbers are all equal."""
        from scipy import stats

        truth, predicted = sums.targets["number"].astype(np.float64), self.numbers(sums.outputs)
        vary = bool(np.ptp(truth) and np.ptp(predicted))
        return super().summarize(sums) | {
            "spearman": float(stats.spearmanr(truth, predicted).statistic) if vary else 0.0,
            "pearson": float(stats.pearsonr(truth, predicted).statistic) if vary else 0.0,
        }
