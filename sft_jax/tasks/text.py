"""Text classification: one label per text, or per pair of texts, with a pretrained transformer of texts."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sft_jax.tasks.classification import Classification
from sft_jax.tasks.classification_sums import EvalSums
from sft_jax.tasks.monitor import Monitor
from sft_jax.tasks.statistics import matthews
from sft_jax.tasks.text_inputs import TextInputs


@dataclasses.dataclass(frozen=True)
class TextClassification(TextInputs, Classification):
    """Text classification with the target "label", int32 [n]."""

    monitors = {  # noqa: RUF012  # never changed
        **Classification.monitors,
        "val_matthews": Monitor("val_matthews", "validation Matthews correlation", percent=False),
    }

    def summarize(self, sums: EvalSums) -> dict[str, Any]:
        """See `Classification`; adds the Matthews correlation."""
        return super().summarize(sums) | {"matthews": matthews(np.asarray(sums.confusion))}

    def results(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """See `Classification`; adds the Matthews correlation."""
        others = {name: value for name, value in figures.items() if name != "matthews"}
        return super().results(others) | {"test_matthews": figures["matthews"]}
