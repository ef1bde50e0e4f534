"""Features of all images or texts of a source: what the network's head would get."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from sft_jax.data.images.formats import FileWarnings
from sft_jax.data.sources.known import check_of_images
from sft_jax.data.sources.labelling import LABELLINGS
from sft_jax.data.sources.pictures import Pictures, load_pictures
from sft_jax.data.sources.texts.everything import all_texts
from sft_jax.data.texts.reading import Text
from sft_jax.errors import UserError
from sft_jax.inference.network import BATCH
from sft_jax.inference.predictor import Classifier
from sft_jax.inference.texts import CHUNK, TextClassifier

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
    _check_finite(features)
    return Embedded(np.array(rows), features, seen, problems, warned.lines)


def arrays_of_images(
    network: Classifier,
    config: ConfigDict,
    split: str | None,
    notices: list[str],
    problems: list[str],
    after: Callable[[int, int], None],
) -> dict[str, Any]:
    """Returns the features of the images that `config` names, with their labels and names, see `load_pictures`.

    `notices` and `problems`, of unreadable images, receive lines. Raises UserError.
    """
    check_of_images(config)
    pictures = load_pictures(config.data, notices, split=split)
    embedded = embed(network, pictures, lambda image: None, after)
    notices += embedded.warnings
    problems += [f"{pictures.names[row]} cannot be read: {why}" for row, why in embedded.problems.items()]
    return {
        "features": embedded.features,
        "labels": pictures.labels[embedded.rows],
        "class_names": np.array(pictures.class_names),
        "files": np.array(pictures.names)[embedded.rows],
    }


def arrays_of_texts(
    network: TextClassifier,
    config: ConfigDict,
    split: str | None,
    notices: list[str],
    after: Callable[[int, int], None],
) -> dict[str, Any]:
    """Returns the features of the texts that `config` names, with their classes and names, see `all_texts`.

    `notices` receives lines. Raises UserError.
    """
    found = all_texts(config, split, notices)
    features = text_features(network, [each.text for each in found.all], after)
    labels = LABELLINGS[found.labelling].targets([each.label for each in found.all], found.class_names)
    return {
        "features": features,
        "labels": labels["label"],
        "class_names": np.array(found.class_names),
        "files": np.array([each.name for each in found.all]),
    }


def text_features(network: TextClassifier, texts: Sequence[Text], after: Callable[[int, int], None]) -> np.ndarray:
    """Computes the features of texts, float32 [n, channels].

    Args:
      network: a network of texts.
      texts: one or more.
      after: called with the number of texts done and the total.

    Raises:
      UserError: the network has no features, or they are not finite.
    """
    blocks = []
    for first in range(0, len(texts), CHUNK):
        blocks.append(network.features(texts[first : first + CHUNK]))
        after(min(first + CHUNK, len(texts)), len(texts))
    features = np.concatenate(blocks)
    _check_finite(features)
    return features


def _check_finite(features: np.ndarray) -> None:
    if not np.isfinite(features).all():
        raise UserError("the network's features are not finite; name other weights")
