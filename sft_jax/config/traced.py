"""Settings that are arguments of a compiled program: one program then serves every value, or several at once."""

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

# Config keys that only scale something: a program does not depend on their values.
TRACEABLE = (
    "optimizer.learning_rate",
    "optimizer.momentum",
    "optimizer.weight_decay",
    "regularization.label_smoothing",
)
# XLA folds it into other constants: as an argument it gives the same numbers up to rounding, not the same bits.
ROUNDED = frozenset({"regularization.label_smoothing"})


def with_traced(config: ConfigDict, values: Mapping[str, jax.Array]) -> ConfigDict:
    """A copy of `config` in which the dotted keys of `values`, of `TRACEABLE`, are these scalars."""
    changed = config.copy_and_resolve_references().unlock()
    with changed.ignore_type():
        changed.update_from_flattened_dict(values)
    return changed.lock()


def is_on(setting: Any) -> bool:
    """Whether a setting does anything: all but 0, False and None. An array's value is not known yet: it may."""
    return isinstance(setting, jax.Array) or bool(setting)
