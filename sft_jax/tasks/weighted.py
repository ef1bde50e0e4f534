"""What tasks have in common whose loss is a cross-entropy of classes, with weights and smoothed labels."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sft_jax.tasks.base import Task
from sft_jax.tasks.class_weights import check_weights


@dataclasses.dataclass(frozen=True)
class WeightedTask(Task):
    """A task of classes.

    Attributes:
      class_names: in label order.
      label_smoothing, class_weights: settings of the training loss, see `cross_entropy`.
      class_weights_file: the file with the class weights, if there is one.
    """

    class_names: tuple[str, ...]
    label_smoothing: float | jax.Array = 0.0
    class_weights: tuple[float, ...] | None = None
    class_weights_file: str | None = None

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """Number of classes."""
        return len(self.class_names)

    def with_settings(self, config: ConfigDict) -> Self:
        """See `Task`."""
        return dataclasses.replace(self, label_smoothing=config.regularization.label_smoothing)

    def facts(self) -> dict[str, Any]:
        """Returns the class weights if they come from a file, which may change."""
        return {} if self.class_weights_file is None else {"class_weights": self.class_weights}

    def check_facts(self, record: Mapping[str, Any], run: Path) -> None:
        """See `Task`."""
        check_weights(record, self.class_weights, self.class_weights_file, run)

    def weights(self) -> jax.Array | None:
        """Returns the weights of classes, float32 [classes]; None if they are all 1."""
        return None if self.class_weights is None else jnp.asarray(self.class_weights, jnp.float32)


def file_of(setting: str) -> str | None:
    """Returns the file that `regularization.class_weights` names; None for its other values."""
    return None if setting in ("none", "balanced") else setting
