"""What an image goes through before the network sees it: in evaluation, in prediction and with an export alike."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sft_jax.data.augment import preprocess, preprocess_unit
from sft_jax.data.images.square import FITS, INTERPOLATIONS, Square
from sft_jax.errors import UserError

RGB = tuple[float, float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess(Square):
    """How images become the network's inputs: squares, then scaled and normalised. A run, an export and converted
    weights each record theirs.

    Attributes:
      mean, std: of each channel, on the scale 0..1.
    """

    mean: RGB
    std: RGB

    @classmethod
    def of_config(cls, config: ConfigDict, square: Square | None = None) -> "Preprocess":
        """That of the evaluation with `config`, the part `data` of the configuration.

        Args:
          config: the part.
          square: what the images of the data set went through, see `Dataset`; None for a run that recorded nothing.
        """
        if square is None:
            square = Square(config.size, config.fit, keep_square=not config.source.startswith("folder:"))
        return cls(**vars(square), mean=tuple(config.mean), std=tuple(config.std))

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, str], otherwise: "Preprocess") -> "Preprocess":
        """What the entry "preprocess" of `metadata` says; `otherwise` where there is none. Raises UserError."""
        return cls.from_json(json.loads(metadata["preprocess"])) if "preprocess" in metadata else otherwise

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Preprocess":
        """What `to_json` gave. Raises UserError where it is of a kind that this version does not know."""
        known = {field.name for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()
        }
        if "crop" in values:  # the first exports had it in place of these
            values["keep_square"] = not values.pop("crop")
        if values.keys() - known or not {"size", "mean", "std"} <= values.keys():
            raise UserError(f"images are to be prepared in a way that this version does not know: {dict(facts)}")
        found = cls(**values)
        if found.fit not in FITS or found.interpolation not in INTERPOLATIONS:
            raise UserError(f"images are to be prepared in a way that this version does not know: {dict(facts)}")
        return found

    @property
    def square(self) -> Square:
        """The part that the CPU does."""
        return Square(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Square)})

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it, under the names of the attributes."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def on_device(self, images: jax.Array) -> jax.Array:
        """Squares [n, side, side, 3], uint8 or float32 in 0..1 -> normalised float32 [n, size, size, 3]. Pure."""
        scale = preprocess if images.dtype == jnp.uint8 else preprocess_unit
        return scale(images, size=self.size, mean=self.mean, std=self.std)


def recorded_square(facts: Mapping[str, Any] | None) -> Square | None:
    """What the images of a run went through, which has recorded `facts` of it; None as of the first runs: nothing."""
    return None if facts is None else Preprocess.from_json(facts).square


# As torchvision's first ImageNet weights want it.
IMAGENET = Preprocess(224, resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
