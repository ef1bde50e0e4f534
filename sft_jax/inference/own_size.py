"""Outputs of the square that the network sees, at the size of its picture."""

from collections.abc import Sequence

import numpy as np

from sft_jax.data.crops import CENTRE, cropped
from sft_jax.data.images.mask import VOID
from sft_jax.data.preprocess import Preprocess


def at_own_size(outputs: np.ndarray, preprocess: Preprocess, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the class of each pixel of a picture of `shape` = height, width: uint8 [height, width].

    Pixels that the network does not see are `VOID`.

    Args:
      outputs: float32 [size, size, classes], of the picture's square.
      preprocess: how the square was made.
      shape: of the picture.
    """
    return interpolated(outputs, extent(preprocess, shape), shape)


def interpolated(outputs: np.ndarray, extents: Sequence[tuple[float, float]], shape: tuple[int, ...]) -> np.ndarray:
    """Returns the class of each pixel of a picture of `shape` = height, width: uint8 [height, width], `VOID` outside.

    Outputs between the centres of the network's pixels are interpolated bilinearly, as by torchvision.

    Args:
      outputs: float32 [rows, columns, classes].
      extents: where the picture's rows, and columns, begin among those of the outputs, and how long they are.
      shape: of the picture.
    """
    rows, columns = (
        weights_of(side, first, length, given)
        for side, (first, length), given in zip(shape, extents, outputs.shape[:2], strict=True)
    )
    best = np.full(shape, -np.inf, np.float32)
    mask = np.zeros(shape, np.uint8)
    for label in range(outputs.shape[-1]):  # one class at a time, because pictures may be large
        own = rows @ outputs[..., label] @ columns.T
        better = own > best
        mask[better], best[better] = label, own[better]
    unseen = [~weights.any(1) for weights in (rows, columns)]
    mask[unseen[0]] = VOID
    mask[:, unseen[1]] = VOID
    return mask


def extent(preprocess: Preprocess, shape: tuple[int, ...]) -> list[tuple[float, float]]:
    """Returns where a picture's rows, and columns, begin in the network's input, and how long they are, in pixels.

    See `Square._squared` and `crops.cropped`, which make that input.
    """
    kept = preprocess.keep_square and shape[0] == shape[1]
    side, size = shape[0] if kept else preprocess.side, preprocess.size
    if kept or preprocess.fit == "squash":
        extents = [(0.0, float(side))] * 2
    elif preprocess.fit == "pad":
        lengths = [max(1, round(side * each / max(shape))) for each in shape]
        extents = [(float((side - length) // 2), float(length)) for length in lengths]
    else:
        shorter = preprocess.resize or side
        lengths = [shorter * each // min(shape) for each in shape]
        extents = [(-float(round((length - side) / 2)), float(length)) for length in lengths]
    seen = cropped(np.empty((1, side, side), bool), preprocess.size, preprocess.crop_pct).shape[1]
    start = round((side - seen) * CENTRE[0])
    return [((first - start) * size / seen, length * size / seen) for first, length in extents]


def weights_of(side: int, first: float, length: float, size: int) -> np.ndarray:
    """Computes the weights of `size` outputs for each of a picture's `side` rows: float32 [side, size]; 0 outside."""
    places = first + (np.arange(side) + 0.5) * (length / side) - 0.5
    near = np.clip(places, 0, size - 1)
    weights = np.maximum(0, 1 - np.abs(near[:, None] - np.arange(size)))
    inside = (places >= -0.5) & (places <= size - 0.5)
    return (weights * inside[:, None]).astype(np.float32)
