"""Settings that can be arguments of a compiled program, so that one program serves all values, or several at once."""

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

# Config keys that only scale something, so that the program does not depend on their values.
TRACEABLE = (
    "optimizer.learning_rate",
    "optimizer.momentum",
    "optimizer.weight_decay",
    "regularization.label_smoothing",
)
# XLA folds it into other constants; as an argument it gives results that are equal only up to rounding.
ROUNDED = frozenset({"regularization.label_smoothing"})


def with_traced(config: ConfigDict, values: Mapping[str, jax.Array]) -> ConfigDict:
    """Returns a copy of `config` with the scalars `values`, whose dotted keys are in `TRACEABLE`."""
    changed = config.copy_and_resolve_references().unlock()
    with changed.ignore_type():
        changed.update_from_flattened_dict(values)
    return changed.lock()


def is_on(setting: Any) -> bool:
    """Returns whether a setting is not 0, False or None. Arrays count as on, because their values may be traced."""
    return isinstance(setting, jax.Array) or bool(setting)
