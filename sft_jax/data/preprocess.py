"""Preprocessing of images for evaluation, prediction and exported models."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sft_jax.data import crops
from sft_jax.data.images.reading import Reading
from sft_jax.data.images.square import FITS, INTERPOLATIONS, Square
from sft_jax.data.pixels import preprocess, preprocess_unit
from sft_jax.data.sources.known import source_of
from sft_jax.errors import UserError
from sft_jax.models.architecture import Pretrained

RGB = tuple[float, float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess(Square):
    """Preprocessing from images to network inputs: square, crop, scale, normalise. Recorded by runs and exports.

    Attributes:
      mean, std: per channel, for pixels in 0..1.
      crop_pct: fraction of the square's side that the network sees.
    """

    mean: RGB
    std: RGB
    crop_pct: float = 1.0

    @classmethod
    def of_config(cls, config: ConfigDict, square: Square | None = None) -> "Preprocess":
        """Returns the preprocessing for evaluation with `config`, the section `data` of the config.

        Args:
          config: the section.
          square: host-side preprocessing of the dataset, see `Dataset`; None for a run that recorded none.
        """
        if square is None:
            reading = Reading.of_config(config)
            square = reading.square_of(config.size)
            # Runs that recorded none decoded images whole.
            square = dataclasses.replace(square, keep_square=not source_of(config).of_files, decoding="exact")
        return cls(**vars(square), mean=tuple(config.mean), std=tuple(config.std), crop_pct=config.crop_pct)

    @classmethod
    def of_pretrained(cls, pretrained: Pretrained) -> "Preprocess":
        """Returns the preprocessing of an architecture's pretrained weights."""
        return cls(**dataclasses.asdict(pretrained))

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, str], otherwise: "Preprocess") -> "Preprocess":
        """Parses the entry "preprocess" of `metadata`; returns `otherwise` if there is none. Raises UserError."""
        return cls.from_json(json.loads(metadata["preprocess"])) if "preprocess" in metadata else otherwise

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Preprocess":
        """Parses the output of `to_json`. Raises UserError if this version does not support it."""
        known = {field.name for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()
        }
        if "crop" in values:  # written by early exports
            values["keep_square"] = not values.pop("crop")
        if values.keys() - known or not {"size", "mean", "std"} <= values.keys():
            raise UserError(f"this version does not support the recorded preprocessing: {dict(facts)}")
        preprocess = cls(**values)
        if preprocess.fit not in FITS or preprocess.interpolation not in INTERPOLATIONS:
            raise UserError(f"this version does not support the recorded preprocessing: {dict(facts)}")
        return preprocess

    @property
    def square(self) -> Square:
        """The host-side part."""
        return Square(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Square)})

    def to_json(self) -> dict[str, Any]:
        """Returns the attributes by name, as JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def on_device(self, images: jax.Array, place: crops.Place = crops.CENTRE) -> jax.Array:
        """Crops, resizes and normalises square images [n, side, side, 3], uint8 or float32 in 0..1, on the device.

        Returns float32 [n, size, size, 3]; see `crops.cropped` for `place`. Pure.
        """
        scale = preprocess if images.dtype == jnp.uint8 else preprocess_unit
        return scale(
            images,
            size=self.size,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            place=place,
        )


def recorded_square(facts: Mapping[str, Any] | None) -> Square | None:
    """Returns the host-side preprocessing that a run recorded as `facts`; None for early runs, which recorded none."""
    return None if facts is None else Preprocess.from_json(facts).square
