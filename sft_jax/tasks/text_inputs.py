"""What tasks of texts have in common: inputs, tokenisation, and settings of images that they refuse."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

from ml_collections import ConfigDict

from sft_jax.config.schema import KEYS
from sft_jax.data import Dataset
from sft_jax.data.texts.reading import TextReading
from sft_jax.errors import UserError
from sft_jax.models import architecture
from sft_jax.tasks.base import Augment, Preprocess, Task

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
class TextInputs(Task):
    """The part of a task that concerns its inputs, "tokens" and "segments"; another base class has the targets.

    Attributes:
      tokenizer, length: see `TextReading`.
    """

    inputs = ("tokens", "segments")
    unit = "text"
    groups: ClassVar[tuple[str, ...]] = ("text",)
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
        return dataclasses.replace(
            super().of_network(names, learnt), tokenizer=learnt["tokenizer"], length=learnt["length"]
        )

    def learnt(self, validation: Mapping[str, Any] | None) -> dict[str, Any]:
        """Returns what the other base class does, the tokenizer, as JSON, and the most tokens of a text."""
        return super().learnt(validation) | {"tokenizer": self.tokenizer, "length": self.length}

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
