"""Another task, the distance to the label: a complete example of what a task needs, named in CONTRIBUTING.md."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.tasks import Monitor, Task


class Sums(NamedTuple):
    """Sums over evaluated examples: their number (exact), squared and absolute errors."""

    total: jax.Array
    squared: jax.Array
    absolute: jax.Array


@dataclasses.dataclass(frozen=True)
class Toy(Task):
    targets = ("label",)
    monitors = {  # noqa: RUF012  # never changed
        "val_mae": Monitor("val_mae", "mean absolute error", lower_is_better=True, percent=False),
        "val_loss": Monitor("val_loss", "validation loss", lower_is_better=True, percent=False),
    }
    outputs = 1

    @classmethod
    def create(cls, config, dataset):
        return cls()

    def loss(self, outputs, batch):
        return (outputs[:, 0] - batch["label"].astype(outputs.dtype)) ** 2

    def train_sums(self, outputs, batch):
        return {"absolute": jnp.abs(outputs[:, 0] - batch["label"].astype(outputs.dtype)).sum()}

    def train_figures(self, sums, examples):
        return {"mae": sums["absolute"] / examples}

    def sums(self, outputs, batch, mask):
        errors = jnp.where(mask, outputs[:, 0].astype(jnp.float32) - batch["label"].astype(jnp.float32), 0.0)
        return Sums(mask.sum(dtype=jnp.int32), (errors**2).sum(), jnp.abs(errors).sum())

    def summarize(self, sums):
        total = int(sums.total)
        return {"loss": float(sums.squared) / total, "mae": float(sums.absolute) / total, "count": total}


def errors_of(outputs, labels):
    """Returns the expected result of `summarize`, computed with numpy."""
    errors = np.asarray(outputs, np.float64)[:, 0] - labels
    return {"loss": (errors**2).mean(), "mae": np.abs(errors).mean()}
