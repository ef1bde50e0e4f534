"""What an image goes through before the network sees it, outside training: the same as in a run's evaluation."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sft_jax.data.augment import preprocess, preprocess_unit
from sft_jax.data.images import array_to_square, read_square

RGB = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """How images become the network's inputs.

    Attributes:
      size: side in pixels of what the network sees.
      mean, std: of each channel, on the scale 0..1.
      crop: whether images of another size are brought to a square as pictures in folders are (see `to_square`);
        otherwise they are resized on the device as images of tensorflow_datasets are, and only pictures in files that
        are not square are cropped.
    """

    size: int
    mean: RGB
    std: RGB
    crop: bool

    @classmethod
    def of_config(cls, config: ConfigDict) -> "Preprocess":
        """That of the evaluation with `config`, the part `data` of the configuration."""
        return cls(config.size, tuple(config.mean), tuple(config.std), config.source.startswith("folder:"))

    def read(self, path: Path) -> np.ndarray:
        """A picture from a file, uint8 [side, side, 3]. Raises one of `images.UNREADABLE`."""
        return read_square(path, self.size, keep_square=not self.crop)

    def on_host(self, images: Any) -> np.ndarray:
        """Checks images [n, height, width, 3], uint8 or float32 in 0..1; crops them to `size` where `crop` is set.

        Raises:
          TypeError: another dtype.
          ValueError: another shape, or values outside 0..1.
        """
        images = np.asarray(images)
        if images.dtype not in (np.uint8, np.float32):
            raise TypeError(f"images must be uint8 in 0..255 or float32 in 0..1, not {images.dtype}")
        if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:3]:
            hint = "; for one image: images[None]" if images.ndim == 3 and images.shape[-1] == 3 else ""
            raise ValueError(f"images must be [n, height, width, 3], RGB, not {list(images.shape)}{hint}")
        # Written so that NaN fails too.
        if images.dtype == np.float32 and images.size and not (images.min() >= 0 and images.max() <= 1):
            raise ValueError(
                f"float32 images must be in 0..1, not {images.min():g}..{images.max():g}: give pixels as uint8, and do "
                f"not normalise images, which is done here"
            )
        if self.crop and images.shape[1:3] != (self.size, self.size) and len(images):
            return np.stack([array_to_square(image, self.size) for image in images])
        return images

    def on_device(self, images: jax.Array) -> jax.Array:
        """What `on_host` returned -> the network's inputs, normalised float32 [n, size, size, 3]. Pure."""
        scale = preprocess if images.dtype == jnp.uint8 else preprocess_unit
        return scale(images, size=self.size, mean=self.mean, std=self.std)


# As torchvision's ImageNet weights want it.
IMAGENET = Preprocess(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop=True)
