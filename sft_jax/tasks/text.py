"""Text classification: one label per text, or per pair of texts, with a pretrained transformer of texts."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from ml_collections import ConfigDict

from sft_jax.config.schema import KEYS
from sft_jax.data import Dataset
from sft_jax.data.texts.reading import TextReading
from sft_jax.errors import UserError
from sft_jax.models import architecture
from sft_jax.tasks.base import Augment, Preprocess
from sft_jax.tasks.classification import Classification
from sft_jax.tasks.classification_sums import EvalSums
from sft_jax.tasks.monitor import Monitor
from sft_jax.tasks.statistics import matthews

# Keys of the group `data` that concern texts as well; all others are about images.
SHARED = (
    "source",
    "dir",
    "download",
    "train",
    "validation",
    "test",
    "allow_overlap",
    "per_class",
    "balance",
    "placement",
    "label_key",
    "part_key",
)
NO_IMAGES = "texts are no images"


@dataclasses.dataclass(frozen=True)
class TextClassification(Classification):
    """Text classification with the inputs "tokens" and "segments" and the target "label".

    Attributes:
      tokenizer, length: see `TextReading`.
    """

    inputs = ("tokens", "segments")
    unit = "text"
    monitors = {  # noqa: RUF012  # never changed
        **Classification.monitors,
        "val_matthews": Monitor("val_matthews", "validation Matthews correlation", percent=False),
    }
    refused: ClassVar[Mapping[str, str]] = {
        **{key: NO_IMAGES for key in KEYS if key.startswith("data.") and key.removeprefix("data.") not in SHARED},
        "evaluation.flips": NO_IMAGES,
        "evaluation.crops": NO_IMAGES,
        "regularization.mixup": "tokens cannot be blended",
        "regularization.cutmix": "tokens cannot be blended",
        "regularization.stochastic_depth": "networks of texts have none; use regularization.dropout",
    }

    tokenizer: str = dataclasses.field(default="", repr=False)
    length: int = 0

    @classmethod
    def reading(cls, config: ConfigDict, tokenizer: Callable[[], str | None]) -> TextReading:
        """See `Task`."""
        network = architecture(config.model.name)
        network.check_inputs(cls.inputs, config.task)
        assert network.texts is not None
        own = tokenizer()
        if own is None:
            raise UserError(
                f"init={config.init} has no tokenizer; name the tokenizer.json of {network.name} with "
                f"--config.text.tokenizer=FILE"
            )
        return TextReading.of(own, config.text.length, network.texts, config.text.columns)

    @classmethod
    def create(cls, config: ConfigDict, dataset: Dataset) -> Self:
        """See `Task`."""
        reading = dataset.reading
        assert reading is not None
        return dataclasses.replace(super().create(config, dataset), tokenizer=reading.tokenizer, length=reading.length)

    @classmethod
    def of_network(cls, names: Sequence[str], learnt: Mapping[str, Any]) -> Self:
        """See `Task`."""
        return cls(tuple(names), tokenizer=learnt["tokenizer"], length=learnt["length"])

    def learnt(self, validation: Mapping[str, Any] | None) -> dict[str, Any]:
        """Returns the tokenizer, as JSON, and the most tokens of a text."""
        return {"tokenizer": self.tokenizer, "length": self.length}

    def augment(self, config: ConfigDict, size: int) -> Augment:
        """Returns the identity."""
        return lambda batch, key, first, total: batch

    def preprocess(self, config: ConfigDict, size: int) -> Preprocess:
        """Returns the identity."""
        return lambda batch: batch

    def views(self, config: ConfigDict, size: int, *, crops: int, flips: bool) -> list[Preprocess]:
        """Returns the identity."""
        return [self.preprocess(config, size)]

    @classmethod
    def size_text(cls, config: ConfigDict, size: int) -> str:
        """See `Task`."""
        return f"up to {config.text.length} tokens"

    def summarize(self, sums: EvalSums) -> dict[str, Any]:
        """See `Classification`; adds the Matthews correlation."""
        return super().summarize(sums) | {"matthews": matthews(np.asarray(sums.confusion))}

    def results(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """See `Classification`; adds the Matthews correlation."""
        others = {name: value for name, value in figures.items() if name != "matthews"}
        return super().results(others) | {"test_matthews": figures["matthews"]}
