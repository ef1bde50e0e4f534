"""Masks of large pictures through overlapping windows, and of pictures together with their mirror images."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from sft_jax.data.images.mask import VOID
from sft_jax.data.preprocess import Preprocess
from sft_jax.errors import UserError
from sft_jax.inference.own_size import extent, interpolated, weights_of
from sft_jax.runtime.memory import check_free

if TYPE_CHECKING:
    from sft_jax.inference.predictor import Classifier

# Windows, or squares, per call of the network: their outputs have as many numbers as pixels and classes.
BATCH = 8


class View(NamedTuple):
    """How a network sees a picture.

    Attributes:
      windows: length in pixels to which its shorter side is resized, to be seen through overlapping windows; 0 for its
        own size, None for the whole picture at once.
      flips: whether outputs are averaged with those of the mirror image.
    """

    windows: int | None = None
    flips: bool = False

    @property
    def suffix(self) -> str:
        """What a file of results is called after; empty for whole pictures as they are."""
        return ("" if self.windows is None else f"_windows{self.windows}") + "_flips" * self.flips


WHOLE = View()


def outputs_of(classifier: "Classifier", squares: Sequence[np.ndarray], view: View) -> np.ndarray:
    """Computes the outputs of at most `BATCH` squares: float32 [n, size, size, classes].

    See `Classifier.square_logits`.
    """
    outputs = classifier.square_logits(squares)
    if view.flips:
        outputs = (outputs + classifier.square_logits(squares, mirrored=True)[:, :, ::-1]) / 2
    return outputs


def check_view(view: View, preprocess: Preprocess) -> None:
    """Raises UserError if pictures would be smaller than a window."""
    side = side_of(preprocess)
    if view.windows and view.windows < side:
        raise UserError(
            f"--windows {view.windows}: a window has {side} pixels a side, as the network saw whole pictures; give a "
            f"larger number, or 0 for the pictures' own size"
        )


def side_of(preprocess: Preprocess) -> int:
    """Returns the side of a window, which becomes a square without being resized."""
    if preprocess.keep_square:
        return preprocess.size
    return (preprocess.fit == "crop" and preprocess.resize) or preprocess.side


def seen_in_windows(classifier: "Classifier", picture: np.ndarray, view: View) -> np.ndarray:
    """Returns the class of each pixel of a picture: uint8 [height, width]; `VOID` where the network sees nothing.

    Neighbouring windows share half of their pixels, of which the outputs are averaged. A picture that is smaller than a
    window is enlarged.

    Args:
      classifier: a network of pixels.
      picture: uint8 [height, width, 3].
      view: with windows.

    Raises:
      UserError: the outputs do not fit into memory.
    """
    preprocess, shape = classifier.preprocess, picture.shape[:2]
    side = side_of(preprocess)
    scale = max(view.windows or min(shape), side) / min(shape)
    height, width = (max(side, round(scale * each)) for each in shape)
    classes = len(classifier.class_names)
    check_free(
        4 * height * width * (classes + 1),
        f"the outputs of a picture of {width} x {height} pixels",
        "use a smaller number with --windows",
    )
    resized = Image.fromarray(picture).resize((width, height), Image.Resampling[preprocess.interpolation.upper()])
    pixels = np.asarray(resized)
    rows, columns = (
        weights_of(side, first, length, preprocess.size) for first, length in extent(preprocess, (side, side))
    )
    seen = np.outer(rows.any(1), columns.any(1))
    total, count = np.zeros((height, width, classes), np.float32), np.zeros((height, width), np.int32)
    places = itertools.product(starts(height, side), starts(width, side))
    while block := list(itertools.islice(places, BATCH)):
        parts = [(slice(top, top + side), slice(left, left + side)) for top, left in block]
        squares = [preprocess.of_array(pixels[part]) for part in parts]
        for part, own in zip(parts, outputs_of(classifier, squares, view), strict=True):
            total[part] += np.einsum("ri,ijc,sj->rsc", rows, own, columns, optimize=True)
            count[part] += seen
    total /= np.maximum(count, 1)[..., None]  # in place: there is room for one such array
    mask = interpolated(total, [(0.0, height), (0.0, width)], shape)
    down, across = (
        np.minimum(np.arange(own) * given // own, given - 1) for own, given in zip(shape, count.shape, strict=True)
    )
    mask[count[down][:, across] == 0] = VOID
    return mask


def starts(length: int, side: int) -> list[int]:
    """Returns where windows of `side` pixels begin that cover `length` pixels, evenly, at most half of a side apart."""
    steps = -(-2 * (length - side) // side)
    return [round(step * (length - side) / max(steps, 1)) for step in range(steps + 1)]
