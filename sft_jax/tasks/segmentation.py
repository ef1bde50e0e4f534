"""Semantic segmentation: a class per pixel, cross-entropy or Dice, and mean intersection over union (IoU)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sft_jax import data
from sft_jax.data import Dataset, masks
from sft_jax.data.augment import parts
from sft_jax.data.images.mask import VOID
from sft_jax.errors import UserError
from sft_jax.tasks.base import Augment, Batch, Preprocess
from sft_jax.tasks.class_weights import weights_of
from sft_jax.tasks.decoding import Answer, Decoder
from sft_jax.tasks.losses import cross_entropy, dice, inverse_mean
from sft_jax.tasks.monitor import Monitor
from sft_jax.tasks.segmentation_sums import EvalSums, eval_sums, labels_of, summarize
from sft_jax.tasks.weighted import WeightedTask, file_of


@dataclasses.dataclass(frozen=True)
class Segmentation(WeightedTask):
    """A class per pixel, with the target "mask", uint8 [n, height, width]; pixels that are `VOID` are of none.

    Attributes:
      kind: "cross_entropy", "dice" or "both".
      unseen: classes of which no training pixel is.
      void: fraction of the training pixels that are of no class.
    """

    targets = ("mask",)
    labelling = "mask"
    groups = ("segmentation",)
    dense = True
    monitors = {  # noqa: RUF012  # never changed
        monitor.name: monitor
        for monitor in (
            Monitor("val_mean_iou", "mean IoU on the validation images"),
            Monitor("val_pixel_accuracy", "pixel accuracy on the validation images"),
            Monitor("val_mean_accuracy", "mean accuracy of classes on the validation images"),
            Monitor("val_loss", "validation loss", lower_is_better=True, percent=False),
        )
    }
    refused = {  # noqa: RUF012
        "data.per_class": "an image has pixels of several classes; use limit_train_examples",
        "data.balance": "an image has pixels of several classes; use regularization.class_weights",
        "data.auto_augment": "its policies move pixels without their mask; use data.crop_scale and data.color_jitter",
        "data.random_erasing": "erased pixels would keep their class",
        "regularization.mixup": "a pixel has one class",
        "regularization.cutmix": "a pixel has one class",
        "evaluation.flips": "outputs of other views are not brought back to the image's pixels",
        "evaluation.crops": "outputs of other views are not brought back to the image's pixels",
    }

    kind: str = "cross_entropy"
    unseen: tuple[str, ...] = ()
    void: float = 0.0

    @classmethod
    def create(cls, config: ConfigDict, dataset: Dataset) -> "Segmentation":
        """See `Task`."""
        if parts(config.data)["auto_augment"] != "none":
            raise UserError(
                f"config.data.augment={config.data.augment} cannot be used with task=segmentation: it has policies "
                f"that move pixels without their mask; use light, or data.crop_scale and data.color_jitter"
            )
        names = dataset.class_names
        counted = {part: _pixels(getattr(dataset, part).targets["mask"]) for part in ("train", "validation", "test")}
        for part, counts in counted.items():
            if not counts[:VOID].any():
                raise UserError(f"no pixel of the {part} masks has a class, all are ignored")
        of_training = counted["train"]
        counts = of_training[: len(names)]
        setting = config.regularization.class_weights
        return cls(
            names,
            config.regularization.label_smoothing,
            weights_of(setting, counts, names),
            file_of(setting),
            config.segmentation.loss,
            tuple(name for name, count in zip(names, counts, strict=True) if not count),
            float(of_training[VOID] / of_training.sum()),
        )

    @classmethod
    def of_network(cls, names: Sequence[str], learnt: Mapping[str, Any]) -> "Segmentation":
        """See `Task`."""
        return cls(tuple(names))

    def decoder(self) -> "MaskDecoder":
        """See `Task`."""
        return MaskDecoder(self.class_names)

    def described(self) -> str:
        """See `Task`."""
        of_none = f", {self.void:.1%} of the training pixels are of none" if self.void else ""
        unseen = f"; no training pixel is of {', '.join(self.unseen)}" if self.unseen else ""
        return f"a class per pixel, {self.outputs} classes{of_none}{unseen}"

    def augment(self, config: ConfigDict, size: int) -> Augment:
        """See `Task`; the mask follows its image."""
        augmentation = data.make_augment(config, size)
        images = data.of_image(augmentation)

        def augment(batch: Batch, key: jax.Array, first: jax.Array, total: int) -> Batch:
            return images(batch, key, first, total) | {
                "mask": masks.augmented(augmentation, batch["mask"], key, first, total)
            }

        return augment

    def preprocess(self, config: ConfigDict, size: int) -> Preprocess:
        """See `Task`; the mask follows its image, if there is one."""
        images, truth = super().preprocess(config, size), masks.make_preprocess(config.crop_pct, size)

        def preprocess(batch: Batch) -> Batch:
            return images(batch) | {"mask": truth(batch["mask"])}

        return preprocess

    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """Computes the loss of each image, [n], which `loss_scale` turns into the mean over pixels that have a class.

        Args:
          outputs: logits [n, height, width, classes].
          batch: has the target.
        """
        truth = batch["mask"]
        valid, labels = truth != VOID, labels_of(truth)
        loss = jnp.zeros(len(truth), outputs.dtype)
        if self.kind != "dice":
            pixels = cross_entropy(outputs, labels, self.label_smoothing, self.weights())
            loss += jnp.where(valid, pixels, 0).mean((1, 2))
        if self.kind != "cross_entropy":
            share = self._pixel_weights(truth).mean((1, 2)).astype(outputs.dtype)
            loss += share * dice(outputs, labels, valid)
        return loss

    def loss_scale(self, batch: Batch, axis_name: str | None) -> jax.Array:
        """See `Task`: as in torch, the sum of weighted losses is divided by the sum of the weights of all pixels."""
        return inverse_mean(self._pixel_weights(batch["mask"]), axis_name)

    def _pixel_weights(self, truth: jax.Array) -> jax.Array:
        """Returns the weight of every pixel, float32 [n, height, width]: that of its class, 0 for `VOID`."""
        weights = self.weights()
        own = jnp.ones(truth.shape, jnp.float32) if weights is None else weights[labels_of(truth)]
        return jnp.where(truth == VOID, 0, own)

    def train_sums(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Counts pixels that have a class, and those predicted correctly."""
        truth = batch["mask"]
        return {
            "correct": (outputs.argmax(-1) == truth.astype(jnp.int32)).sum(dtype=jnp.int32),
            "pixels": (truth != VOID).sum(dtype=jnp.int32),
        }

    def train_figures(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
        """Returns the accuracy on the pixels of the augmented training images."""
        return {"pixel_accuracy": sums["correct"] / max(sums["pixels"], 1)}

    def sums(self, outputs: jax.Array, batch: Batch, mask: jax.Array) -> EvalSums:
        """See `eval_sums`."""
        return eval_sums(outputs, batch["mask"], mask)

    def summarize(self, sums: EvalSums) -> dict[str, Any]:
        """See the function `summarize`."""
        return summarize(sums)

    def results(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """Returns `figures`, five of them with the prefix "test_", and the class names."""
        figures = dict(figures)
        names = ("mean_iou", "pixel_accuracy", "mean_accuracy", "loss", "count")
        named = {f"test_{name}": figures.pop(name) for name in names}
        return named | {"class_names": list(self.class_names), **figures}

    @classmethod
    def details(cls, results: Mapping[str, Any]) -> str:
        """See `Task`."""
        return (
            f"mean IoU {results['test_mean_iou']:.2%}, pixel accuracy {results['test_pixel_accuracy']:.2%}, mean "
            f"accuracy {results['test_mean_accuracy']:.2%} on {results['test_count']:,} images, loss "
            f"{results['test_loss']:.4f}"
        )

    @classmethod
    def conclusion(cls, results: Mapping[str, Any]) -> str:
        """See `Task`."""
        return f"test {cls.details(results)}"


def _pixels(truth: np.ndarray) -> np.ndarray:
    """Returns the number of pixels of each value of masks uint8 [n, height, width]: int64 [256]."""
    return sum((np.bincount(mask.ravel(), minlength=VOID + 1) for mask in truth), np.zeros(VOID + 1, np.int64))


class MaskDecoder(Decoder):
    """Predicts the class of each pixel: the one with the highest output."""

    heads = ("mask", "shares")

    def __init__(self, class_names: Sequence[str]):
        self.class_names = tuple(class_names)

    def check(self, top: int | None) -> None:
        """Raises UserError for `top`, because each pixel has one class."""
        if top is not None:
            raise UserError(f"--top {top} ranks the classes of an image, but the network predicts one for each pixel")

    def predict(self, outputs: np.ndarray, top: int | None = None) -> np.ndarray:
        """Returns masks at the size of the outputs [n, height, width, classes], uint8 [n, height, width].

        Raises ValueError for `top`.
        """
        if top is not None:
            raise ValueError(f"top={top} ranks the classes of an image, but the network predicts one for each pixel")
        return outputs.argmax(-1).astype(np.uint8)

    def answers(self, outputs: np.ndarray, top: int | None) -> list[Answer]:
        """See `Decoder`: the fraction of the pixels of each class."""
        flat = self.predict(outputs, top).reshape(len(outputs), -1)
        counts = [np.bincount(mask, minlength=len(self.class_names)) / flat.shape[1] for mask in flat]
        return [{"shares": dict(zip(self.class_names, own.tolist(), strict=True))} for own in counts]

    def row(self, answer: Answer) -> tuple[str, ...]:
        """See `Decoder`."""
        return answer.get("mask", ""), ", ".join(f"{name} {share:.1%}" for name, share in answer["shares"].items())

    def columns(self, top: int | None) -> list[str]:
        """See `Decoder`. Raises UserError, because masks are no cells of a table."""
        raise UserError("masks are written to a folder, not to a table: use --output FOLDER")

    def cells(self, answer: Answer) -> list[Any]:
        """See `columns`."""
        raise NotImplementedError
