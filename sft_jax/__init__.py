"""Supervised fine-tuning of pretrained image classifiers in JAX."""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load` and `Classifier`, imported when they are first asked for: jax and flax take seconds."""
    if name in ("Classifier", "load"):
        return getattr(importlib.import_module("sft_jax.inference.predictor"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "Classifier", "load"])
