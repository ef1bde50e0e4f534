"""Supervised fine-tuning of pretrained image classifiers in JAX."""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports `load` and `Classifier` on first access, because importing jax and flax takes seconds."""
    if name in ("Classifier", "load"):
        return getattr(importlib.import_module("sft_jax.inference.predictor"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "Classifier", "load"])
