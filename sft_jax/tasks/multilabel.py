"""Several labels per image: a sigmoid for each, thresholds chosen on the validation split, mAP and F1."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sft_jax.config.schema import KEYS
from sft_jax.data import Dataset
from sft_jax.errors import UserError
from sft_jax.tasks import label_statistics, losses
from sft_jax.tasks.base import Batch, Kept, Task
from sft_jax.tasks.decoding import TOP, Answer, Decoder, pairs, ranked, sigmoid
from sft_jax.tasks.linear_probe import solve_labels
from sft_jax.tasks.monitor import Monitor

# Losses, and their arguments: name -> key of the config's group "multilabel".
LOSSES: dict[str, tuple[Callable[..., jax.Array], dict[str, str]]] = {
    "bce": (losses.binary_cross_entropy, {}),
    "focal": (losses.focal, {"gamma": "focal_gamma", "alpha": "focal_alpha"}),
    "asymmetric": (
        losses.asymmetric,
        {"gamma_positive": "gamma_positive", "gamma_negative": "gamma_negative", "clip": "clip"},
    ),
}
# Threshold of labels before the first validation.
UNDECIDED = 0.5


@dataclasses.dataclass(frozen=True)
class Multilabel(Task):
    """Any number of labels per image, with the target "labels", uint8 [n, labels].

    Attributes:
      class_names: in label order.
      kind: a key of `LOSSES`.
      arguments: of the loss, by name.
      thresholds: probabilities from which on a label is predicted; None to choose them on the split that is evaluated.
    """

    targets = ("labels",)
    labelling = "classes"
    groups = ("multilabel",)
    keeps_outputs = True
    monitors = {  # noqa: RUF012  # never changed
        monitor.name: monitor
        for monitor in (
            Monitor("val_map", "validation mAP"),
            Monitor("val_macro_f1", "validation macro F1"),
            Monitor("val_loss", "validation loss", lower_is_better=True, percent=False),
        )
    }
    refused = {  # noqa: RUF012
        "data.per_class": "images have several labels or none; use limit_train_examples",
        "data.balance": "images have several labels or none",
        "regularization.class_weights": "multilabel.loss=asymmetric and focal weigh labels",
        "regularization.label_smoothing": "its losses are of hard labels",
    }

    class_names: tuple[str, ...]
    kind: str = "bce"
    arguments: tuple[tuple[str, float | None], ...] = ()
    thresholds: tuple[float, ...] | None = None

    @classmethod
    def create(cls, config: ConfigDict, dataset: Dataset) -> "Multilabel":
        """See `Task`. Raises UserError if a setting is for another loss, or a split has no label to learn or score."""
        settings = config.multilabel
        for kind, (_, keys) in LOSSES.items():
            for key in keys.values():
                if kind != settings.loss and settings[key] != KEYS[f"multilabel.{key}"].default:
                    raise UserError(f"config.multilabel.{key} is for multilabel.loss={kind}, not {settings.loss}")
        for part in ("train", "validation", "test"):
            if not getattr(dataset, part).targets["labels"].any():
                raise UserError(f"no {part} image has a label; multilabel needs some in every split")
        arguments = {name: settings[key] for name, key in LOSSES[settings.loss][1].items()}
        return cls(dataset.class_names, settings.loss, tuple(arguments.items()))

    @classmethod
    def of_network(cls, names: Sequence[str], learnt: Mapping[str, Any]) -> "Multilabel":
        """See `Task`."""
        return cls(tuple(names)).with_learnt(learnt)

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """Number of labels."""
        return len(self.class_names)

    def described(self) -> str:
        """See `Task`."""
        return f"{self.outputs} labels, any number of them per image"

    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """Computes the mean over labels, [n]."""
        function, _ = LOSSES[self.kind]
        return function(outputs, batch["labels"].astype(outputs.dtype), **dict(self.arguments)).mean(-1)

    def summarize(self, sums: Kept) -> dict[str, Any]:
        """Computes the metrics of a split.

        They are loss (mean), map (the mean average precision of labels that some image has), macro_f1 (the mean F1 of
        labels that some image has or is given), micro_f1, count, per_class_ap, per_class_f1 and thresholds, which are
        the task's own or else those with the highest F1 on this split. Metrics without any such label are None.
        """
        truth = sums.targets["labels"].astype(bool)
        probabilities = sigmoid(sums.outputs)
        precisions = [
            label_statistics.average_precision(*column) for column in zip(sums.outputs.T, truth.T, strict=True)
        ]
        thresholds = self.thresholds or tuple(
            label_statistics.best_threshold(*column) for column in zip(probabilities.T, truth.T, strict=True)
        )
        predicted = probabilities >= np.array(thresholds)
        f1 = label_statistics.f1_scores(predicted, truth)
        loss = np.asarray(self.loss(jnp.asarray(sums.outputs), {"labels": jnp.asarray(truth)}), np.float64)
        return {
            "loss": float(loss.mean()),
            "map": label_statistics.mean(precisions),
            "macro_f1": label_statistics.mean(f1),
            "micro_f1": label_statistics.f1_scores(predicted.reshape(-1, 1), truth.reshape(-1, 1))[0],
            "count": sums.total,
            "per_class_ap": precisions,
            "per_class_f1": f1,
            "thresholds": list(thresholds),
        }

    def results(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """Returns `figures`, five of them with the prefix "test_", and the class names."""
        figures = dict(figures)
        named = {f"test_{name}": figures.pop(name) for name in ("map", "macro_f1", "micro_f1", "loss", "count")}
        return named | {"class_names": list(self.class_names), **figures}

    @classmethod
    def details(cls, results: Mapping[str, Any]) -> str:
        """See `Task`."""
        figures = (cls.monitors["val_map"].shown(results[f"test_{name}"]) for name in ("map", "macro_f1", "micro_f1"))
        named = ", ".join(map(" ".join, zip(("mAP", "macro F1", "micro F1"), figures, strict=True)))
        return f"{named} on {results['test_count']:,} images, loss {results['test_loss']:.4f}"

    @classmethod
    def conclusion(cls, results: Mapping[str, Any]) -> str:
        """See `Task`."""
        return f"test {cls.details(results)}"

    def learnt(self, validation: Mapping[str, Any] | None) -> dict[str, Any]:
        """Returns the loss, and the thresholds that were chosen on the validation split."""
        chosen = {} if validation is None else {"thresholds": validation["thresholds"]}
        return {"loss": self.kind, "arguments": dict(self.arguments)} | chosen

    def with_learnt(self, learnt: Mapping[str, Any]) -> "Multilabel":
        """See `Task`; thresholds are 0.5 in a checkpoint from before the first validation."""
        thresholds = learnt.get("thresholds") or [UNDECIDED] * self.outputs
        kind, arguments = learnt.get("loss", self.kind), learnt.get("arguments", dict(self.arguments))
        return dataclasses.replace(self, kind=kind, arguments=tuple(arguments.items()), thresholds=tuple(thresholds))

    def closed_form_head(
        self, features: np.ndarray, targets: Mapping[str, np.ndarray], chosen_on: tuple[np.ndarray, Mapping] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `solve_labels`."""
        held_out = None if chosen_on is None else (chosen_on[0], chosen_on[1]["labels"])
        return solve_labels(features, targets["labels"], held_out)

    def decoder(self) -> "LabelDecoder":
        """See `Task`."""
        return LabelDecoder(self.class_names, self.thresholds or (UNDECIDED,) * self.outputs)


class LabelDecoder(Decoder):
    """Predicts the labels whose probability, the sigmoid, reaches their thresholds."""

    heads = ("labels", "sure", "most probable")

    def __init__(self, class_names: Sequence[str], thresholds: Sequence[float]):
        self.class_names, self.thresholds = tuple(class_names), np.array(thresholds)

    def predict(self, outputs: np.ndarray, top: int | None = None) -> tuple[list[list[str]], np.ndarray]:
        """Returns the labels of each image, the most probable first, and the probabilities of all, float32 [n, labels].

        Raises ValueError for `top`, because thresholds decide.
        """
        if top is not None:
            raise ValueError(f"top={top}: thresholds decide how many labels an image gets; omit it")
        return [answer["label"] for answer in self.answers(outputs, None)], sigmoid(outputs).astype(np.float32)

    def answers(self, outputs: np.ndarray, top: int | None) -> list[Answer]:
        """See `Decoder`: the labels, their probabilities, and the `top` most probable ones, or all, with theirs."""
        probabilities = sigmoid(outputs)
        reached = probabilities >= self.thresholds
        names, chances = ranked(outputs, probabilities, self.class_names, top or len(self.class_names))
        answers = []
        for row in range(len(outputs)):
            own = [label for label in np.argsort(-outputs[row], kind="stable") if reached[row, label]]
            answers.append(
                {
                    "label": [self.class_names[label] for label in own],
                    "probability": probabilities[row, own].tolist(),
                    "top": pairs(names[row].tolist(), chances[row].tolist()),
                }
            )
        return answers

    def row(self, answer: Answer) -> tuple[str, ...]:
        """See `Decoder`."""
        sure = ", ".join(f"{probability:.1%}" for probability in answer["probability"])
        following = ", ".join(f"{label} {probability:.1%}" for label, probability in answer["top"][:TOP])
        return ", ".join(answer["label"]) or "-", sure or "-", following

    def columns(self, top: int | None) -> list[str]:
        """See `Decoder`: labels, and the probability of every label. Raises UserError for `top`."""
        if top is not None:
            raise UserError(f"--top {top}: a CSV file has a column for every label; omit it")
        return ["labels", *self.class_names]

    def cells(self, answer: Answer) -> list[Any]:
        """See `Decoder`; labels are separated by semicolons."""
        probabilities = dict(map(tuple, answer["top"]))
        return [";".join(answer["label"]), *(probabilities[name] for name in self.class_names)]
