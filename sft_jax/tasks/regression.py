"""Image regression: one number per image, e.g. an age, a count or a score."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sft_jax.data import Dataset
from sft_jax.errors import UserError
from sft_jax.tasks.base import Batch, Kept, Task
from sft_jax.tasks.decoding import Answer, Decoder
from sft_jax.tasks.linear_probe import solve_number
from sft_jax.tasks.losses import distance
from sft_jax.tasks.monitor import Monitor

NO_CLASSES = "examples have a number, no classes"


@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """Prediction of the target "number", float32 [n].

    In training, outputs are numbers minus their mean, divided by their standard deviation over the training split, so
    that learning rates do not depend on units. Outside the run the head is rescaled, and outputs are the numbers.

    Attributes:
      name: of the number.
      mean, std: of the numbers of the training examples.
      normalised: whether the outputs are.
      kind: the loss, see `distance`; of normalised errors.
    """

    targets = ("number",)
    labelling = "number"
    groups: ClassVar[tuple[str, ...]] = ("regression",)
    keeps_outputs = True
    monitors = {  # noqa: RUF012  # never changed
        monitor.name: monitor
        for monitor in (
            Monitor("val_mae", "mean absolute error", lower_is_better=True, percent=False),
            Monitor("val_rmse", "root of the mean squared error", lower_is_better=True, percent=False),
            Monitor("val_r2", "coefficient of determination", percent=False),
            Monitor("val_loss", "validation loss", lower_is_better=True, percent=False),
        )
    }
    refused = {  # noqa: RUF012
        "data.per_class": f"{NO_CLASSES}; use limit_train_examples",
        "data.balance": NO_CLASSES,
        "regularization.class_weights": NO_CLASSES,
        "regularization.label_smoothing": NO_CLASSES,
    }
    outputs = 1

    name: str
    mean: float
    std: float
    normalised: bool = True
    kind: str = "squared"

    @classmethod
    def create(cls, config: ConfigDict, dataset: Dataset) -> Self:
        """See `Task`. Raises UserError if all training examples have the same number."""
        numbers = dataset.train.targets["number"].astype(np.float64)
        mean, std = float(numbers.mean()), float(numbers.std())
        if not std:
            raise UserError(f"all training {cls.unit}s have the number {mean:g}: there is nothing to learn")
        return cls(dataset.class_names[0], mean, std, kind=config.regression.loss)

    @classmethod
    def of_network(cls, names: Sequence[str], learnt: Mapping[str, Any]) -> Self:
        """See `Task`. The deviation, which is only needed for the loss, is 1 if it is unknown."""
        return cls(names[0], learnt.get("mean", 0.0), learnt.get("std", 1.0), False, learnt.get("loss", "squared"))

    def described(self) -> str:
        """See `Task`."""
        return f"the number {self.name!r}: mean {self.mean:.4g}, standard deviation {self.std:.4g} in training"

    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """See `Task`."""
        return distance(self._errors(outputs, batch["number"]), self.kind)

    def _errors(self, outputs: jax.Array, numbers: jax.Array) -> jax.Array:
        """Returns the errors in standard deviations."""
        numbers = numbers.astype(outputs.dtype)
        if self.normalised:
            return outputs[:, 0] - (numbers - self.mean) / self.std
        return (outputs[:, 0] - numbers) / self.std

    def train_sums(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Adds absolute errors."""
        return {"absolute": jnp.abs(self._errors(outputs, batch["number"])).sum() * self.std}

    def train_figures(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
        """Returns the mean absolute error on the augmented training examples."""
        return {"mae": sums["absolute"] / examples}

    def numbers(self, outputs: np.ndarray) -> np.ndarray:
        """Returns the predicted numbers, float64 [n], from outputs [n, 1]."""
        scale, shift = (self.std, self.mean) if self.normalised else (1.0, 0.0)
        return outputs[:, 0].astype(np.float64) * scale + shift

    def summarize(self, sums: Kept) -> dict[str, Any]:
        """Computes the metrics of a split: loss, mae, rmse, r2 and count.

        r2, the coefficient of determination, is as in scikit-learn; if all numbers are the same it is 0, or 1 without
        errors.
        """
        truth = sums.targets["number"].astype(np.float64)
        errors = self.numbers(sums.outputs) - truth
        batch = {"number": jnp.asarray(sums.targets["number"])}
        loss = np.asarray(self.loss(jnp.asarray(sums.outputs), batch), np.float64)
        squared, spread = float((errors**2).sum()), float(((truth - truth.mean()) ** 2).sum())
        return {
            "loss": float(loss.mean()),
            "mae": float(np.abs(errors).mean()),
            "rmse": (squared / sums.total) ** 0.5,
            "r2": 1 - squared / spread if spread else float(not squared),
            "count": sums.total,
        }

    def learnt(self, validation: Mapping[str, Any] | None) -> dict[str, Any]:
        """Returns the scale of the outputs, and the loss."""
        return {"mean": self.mean, "std": self.std, "loss": self.kind}

    def with_learnt(self, learnt: Mapping[str, Any]) -> Self:
        """See `Task`: the scale is that of the examples that were trained on, even if some are missing now."""
        return dataclasses.replace(self, mean=learnt["mean"], std=learnt["std"])

    @classmethod
    def released(
        cls, head: Mapping[str, np.ndarray], learnt: Mapping[str, Any]
    ) -> tuple[Mapping[str, np.ndarray], Mapping[str, Any]]:
        """See `Task`: the outputs become numbers."""
        scaled = {leaf: array.astype(np.float64) * learnt["std"] for leaf, array in head.items()}
        return {leaf: (a + learnt["mean"] * (leaf == "bias")).astype(np.float32) for leaf, a in scaled.items()}, learnt

    def taken(self, head: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Task`: the outputs become normalised with the numbers of this run."""
        arrays = {leaf: np.asarray(array, np.float64) - self.mean * (leaf == "bias") for leaf, array in head.items()}
        return {leaf: (array / self.std).astype(np.float32) for leaf, array in arrays.items()}

    def closed_form_head(
        self, features: np.ndarray, targets: Mapping[str, np.ndarray], chosen_on: tuple[np.ndarray, Mapping] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `solve_number`; of normalised numbers."""

        def normalised(targets: Mapping[str, np.ndarray]) -> np.ndarray:
            return ((targets["number"].astype(np.float64) - self.mean) / self.std)[:, None]

        held_out = None if chosen_on is None else (chosen_on[0], normalised(chosen_on[1]))
        return solve_number(features, normalised(targets), held_out)

    def decoder(self) -> "NumberDecoder":
        """See `Task`."""
        return NumberDecoder(self)


class NumberDecoder(Decoder):
    """Predicts the number."""

    def __init__(self, task: Regression):
        self._task, self.heads, self.right = task, (task.name,), (task.name,)

    def check(self, top: int | None = None) -> None:
        """See `Decoder`: there is nothing to rank."""
        if top is not None:
            raise UserError(f"--top {top} ranks classes, but the network predicts the number {self._task.name!r}")

    def predict(self, outputs: np.ndarray, top: int | None = None) -> np.ndarray:
        """Returns the numbers, float32 [n]. Raises ValueError for `top`."""
        if top is not None:
            raise ValueError(f"top={top} ranks classes, but the network predicts a number; omit it")
        return self._task.numbers(outputs).astype(np.float32)

    def answers(self, outputs: np.ndarray, top: int | None) -> list[Answer]:
        """See `Decoder`: the value."""
        return [{"value": value} for value in self.predict(outputs).tolist()]

    def row(self, answer: Answer) -> tuple[str, ...]:
        """See `Decoder`."""
        return (f"{answer['value']:.6g}",)

    def columns(self, top: int | None) -> list[str]:
        """See `Decoder`."""
        return ["value"]

    def cells(self, answer: Answer) -> list[Any]:
        """See `Decoder`."""
        return [answer["value"]]
