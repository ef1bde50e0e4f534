"""Features of all images of a source: what the network's head would get."""

import itertools
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from sft_jax.data.images.formats import FileWarnings
from sft_jax.data.sources.pictures import Pictures
from sft_jax.errors import UserError
from sft_jax.inference.network import BATCH
from sft_jax.inference.predictor import Classifier

R = TypeVar("R")


class Embedded(NamedTuple, Generic[R]):
    """The features of the readable images.

    Attributes:
      rows: their rows among the source's images, int [m], ascending.
      features: float32 [m, channels].
      seen: what the caller's function returned for each.
      problems: the reason for each row that is not readable.
      warnings: Pillow's, see `FileWarnings.lines`.
    """

    rows: np.ndarray
    features: np.ndarray
    seen: list[R]
    problems: dict[int, str]
    warnings: list[str]


def embed(
    classifier: Classifier,
    pictures: Pictures,
    look: Callable[[Image.Image], R],
    after: Callable[[int, int], None],
) -> Embedded[R]:
    """Computes the features of all readable images, each of which is decoded once.

    Args:
      classifier: the network and its preprocessing.
      pictures: the images.
      look: called with each image, as 8-bit RGB of its own size.
      after: called with the number of images done and the total.

    Raises:
      UserError: no image is readable, the network has no features, or they are not finite.
    """

    def action(image: Image.Image) -> tuple[np.ndarray, R]:
        rgb = classifier.preprocess.rgb(image)
        return classifier.preprocess.of_image(rgb), look(rgb)

    rows: list[int] = []
    blocks: list[np.ndarray] = []
    seen: list[R] = []
    problems: dict[int, str] = {}
    with FileWarnings() as warned:
        readable = pictures.read(action, problems)
        while block := list(itertools.islice(readable, BATCH)):
            blocks.append(classifier.square_features([square for _, (square, _) in block]))
            rows += [row for row, _ in block]
            seen += [looked for _, (_, looked) in block]
            after(len(rows) + len(problems), len(pictures))
    if not rows:
        name, why = next((pictures.names[row], why) for row, why in problems.items())
        raise UserError(f"none of the {len(pictures):,} images can be read, for instance {name}: {why}")
    features = np.concatenate(blocks)
    if not np.isfinite(features).all():
        raise UserError("the network's features are not finite; name other weights")
    return Embedded(np.array(rows), features, seen, problems, warned.lines)
