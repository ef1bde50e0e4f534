"""Crops on the device: random resized crops for training, and crops at fixed places for evaluation."""

import functools
import math
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Attempts at drawing a box that fits into the image before the largest centred one is taken, as in torchvision.
ATTEMPTS = 10
# Pixels with a weight, per pixel of a resized box, up to which a CPU adds them instead of multiplying matrices.
FEW_TAPS = 16
# Where a crop is: fractions of the free space above and to the left.
Place = tuple[float, float]
CENTRE: Place = (0.5, 0.5)
# Five crops as torchvision's `FiveCrop`: centre and corners.
PLACES: tuple[Place, ...] = (CENTRE, (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))

# A crop, and whether it is mirrored.
View = tuple[Place, bool]
Images = TypeVar("Images", jax.Array, np.ndarray)


def views(count: int, *, flips: bool) -> list[View]:
    """Returns the views of an image for test-time augmentation, the plain centre first.

    Args:
      count: of crops: 1, or 5 for the centre and the corners.
      flips: whether the mirror image of each follows it.
    """
    return [(place, mirrored) for place in PLACES[:count] for mirrored in (False, True)[: 1 + flips]]


def random_boxes(
    key: jax.Array, count: int, sides: tuple[int, int], scale: Sequence[float], ratio: Sequence[float]
) -> jax.Array:
    """Draws boxes as `torchvision.transforms.RandomResizedCrop` does.

    Args:
      key: random key.
      count: number of boxes.
      sides: height and width of the image.
      scale: least and greatest area, relative to the image's.
      ratio: least and greatest width divided by height, drawn uniformly on a logarithmic scale.

    Returns:
      whole numbers, float32 [count, 4]: top, left, height and width.
    """
    height, width = sides
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    areas = jax.random.uniform(area_key, (count, ATTEMPTS), minval=scale[0], maxval=scale[1]) * (height * width)
    low, high = jnp.log(ratio[0]), jnp.log(ratio[1])
    ratios = jnp.exp(jax.random.uniform(ratio_key, (count, ATTEMPTS), minval=low, maxval=high))
    widths, heights = jnp.round(jnp.sqrt(areas * ratios)), jnp.round(jnp.sqrt(areas / ratios))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.argmax(1, keepdims=True)
    drawn = jnp.concatenate([jnp.take_along_axis(sizes, first, 1) for sizes in (heights, widths)], 1)
    free = jnp.array([[height, width]], jnp.float32) - drawn
    corners = jnp.floor(jax.random.uniform(place_key, (count, 2)) * (free + 1))
    boxes = jnp.concatenate([jnp.minimum(corners, free), drawn], 1)
    fallback = jnp.array([_largest_centred(height, width, ratio)], jnp.float32)
    return jnp.where(fits.any(1)[:, None], boxes, fallback)


def _largest_centred(height: int, width: int, ratio: Sequence[float]) -> tuple[int, int, int, int]:
    if width / height < ratio[0]:
        sides = round(width / ratio[0]), width
    elif width / height > ratio[1]:
        sides = height, round(height * ratio[1])
    else:
        sides = height, width
    return (height - sides[0]) // 2, (width - sides[1]) // 2, *sides


def resample(
    images: jax.Array, boxes: jax.Array, size: int, *, cubic: bool = False, flips: jax.Array | None = None
) -> jax.Array:
    """Resizes each image's box to `size` pixels with antialiasing, as `torchvision...resized_crop` does.

    Args:
      images: [n, height, width, 3] in 0..255.
      boxes: float32 [n, 4], whole numbers: top, left, height and width.
      size: side length of the result.
      cubic: bicubic interpolation instead of bilinear.
      flips: bool [n, 2], of which images the upper and lower, and the left and right sides are exchanged first.

    Returns:
      float32 [n, size, size, 3] in 0..255.
    """
    flips = jnp.zeros((len(images), 2), bool) if flips is None else flips
    by_products, by_taps = (functools.partial(way, size=size, cubic=cubic) for way in (_by_products, _by_taps))
    # 256 to 224 px in batches of 64, on 2 cores: 3.0 ms an image by products, 0.35 ms by taps.
    few = max(map(_tap_count, images.shape[1:3], (size, size), (cubic, cubic))) <= FEW_TAPS
    crops = lax.platform_dependent(images, boxes, flips, cpu=by_taps if few else by_products, default=by_products)
    return jnp.clip(crops, 0, 255)  # bicubic interpolation overshoots


def _by_products(images: jax.Array, boxes: jax.Array, flips: jax.Array, *, size: int, cubic: bool) -> jax.Array:
    """Resamples by products with matrices of weights, most of which are 0."""
    _, height, width, _ = images.shape
    rows, columns = (
        jax.vmap(lambda box, axis=axis, side=side: _weights(box[axis], box[axis + 2], side, size, cubic=cubic))(boxes)
        for axis, side in enumerate((height, width))
    )
    rows, columns = (
        jnp.where(flips[:, axis, None, None], weights[:, :, ::-1], weights)
        for axis, weights in enumerate((rows, columns))
    )
    # The shorter dimension first would be cheaper for flat boxes only, and their shapes are not known here.
    narrow = jnp.einsum("nhwc,nxw->nhxc", images.astype(jnp.float32), columns, precision="highest")
    return jnp.einsum("nyh,nhxc->nyxc", rows, narrow, precision="highest")


def _by_taps(images: jax.Array, boxes: jax.Array, flips: jax.Array, *, size: int, cubic: bool) -> jax.Array:
    """Resamples by adding the few rows, then columns, that have weights other than 0."""

    def reduced(lines: jax.Array, start: jax.Array, length: jax.Array, flip: jax.Array) -> jax.Array:
        """Resizes the first axis of [side, pixels]."""
        first, weights = _taps(start, length, len(lines), size, cubic=cubic)
        last = len(lines) - 1
        places = (jnp.clip(first + tap, 0, last) for tap in range(weights.shape[1]))
        taps = (lines[jnp.where(flip, last - place, place)] for place in places)
        return sum(weights[:, tap, None] * line.astype(jnp.float32) for tap, line in enumerate(taps))  # type: ignore[return-value]

    def one(image: jax.Array, box: jax.Array, flip: jax.Array) -> jax.Array:
        height, width, channels = image.shape
        rows = reduced(image.reshape(height, width * channels), box[0], box[2], flip[0]).reshape(size, width, channels)
        # Whole rows of memory are gathered here too.
        columns = reduced(rows.transpose(1, 0, 2).reshape(width, size * channels), box[1], box[3], flip[1])
        return columns.reshape(size, size, channels).transpose(1, 0, 2)

    return jax.vmap(one)(images, boxes, flips)


def _tap_count(side: int, size: int, cubic: bool) -> int:
    """Returns the number of pixels of an axis that may have weights, for any box in an image of `side` pixels."""
    return math.ceil((4 if cubic else 2) * max(1.0, side / size))


def _taps(start: jax.Array, length: jax.Array, side: int, size: int, *, cubic: bool) -> tuple[jax.Array, jax.Array]:
    """Computes the first pixel and the weights of each pixel of the resized box: int32 [size], float32 [size, taps]."""
    step = length / size
    reach = (2 if cubic else 1) * jnp.maximum(step, 1.0)
    first = jnp.floor(start + (jnp.arange(size, dtype=jnp.float32) + 0.5) * step - 0.5 - reach) + 1
    pixels = first[:, None] + jnp.arange(_tap_count(side, size, cubic), dtype=jnp.float32)[None]
    return first.astype(jnp.int32), _weights_at(pixels, start, length, size, cubic=cubic)


def _weights(start: jax.Array, length: jax.Array, side: int, size: int, *, cubic: bool) -> jax.Array:
    """Computes float32 [size, side]: the weights of an axis's pixels for each pixel of the resized box."""
    return _weights_at(jnp.arange(side, dtype=jnp.float32)[None], start, length, size, cubic=cubic)


def _weights_at(pixels: jax.Array, start: jax.Array, length: jax.Array, size: int, *, cubic: bool) -> jax.Array:
    """Computes the weights of `pixels`, [size, n] or [1, n], for each pixel of the resized box: float32 [size, n].

    They are Pillow's: the filter is as wide as an output pixel where the box is reduced, and pixels outside the box
    have no weight.
    """
    step = length / size
    centres = start + (jnp.arange(size, dtype=jnp.float32) + 0.5) * step - 0.5
    distance = jnp.abs(pixels - centres[:, None]) / jnp.maximum(step, 1.0)
    kernel = _keys(distance) if cubic else jnp.maximum(1 - distance, 0.0)
    kernel = jnp.where((pixels >= start) & (pixels < start + length), kernel, 0.0)
    return kernel / kernel.sum(1, keepdims=True)


def _keys(distance: jax.Array) -> jax.Array:
    """The cubic kernel of Keys (1981) with a = -0.5, as in Pillow."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return jnp.where(distance < 1, near, jnp.where(distance < 2, far, 0.0))


def kept_side(size: int, keep_size: int | None, crop_pct: float) -> int | None:
    """Returns the side length in pixels at which images are kept, of which evaluation sees a part `crop_pct`.

    None if it is `size`, the side of the network's input.
    """
    side = keep_size or int(size / crop_pct)  # rounded down, as in timm
    return None if side == size else side


def cropped(images: Images, size: int, crop_pct: float, place: Place = CENTRE) -> Images:
    """Crops square images [n, side, side, 3] to a fraction `crop_pct` of their side; `size` if that rounds to it.

    With a fraction of 1 images are returned as they are, of any shape.

    Args:
      images: of any dtype.
      size: side length of the network's input, to which the result has yet to be resized.
      crop_pct: see `kept_side`.
      place: fractions of the free space above and to the left of the crop.
    """
    if crop_pct == 1:
        return images
    side = images.shape[1]
    seen = size if side == kept_side(size, None, crop_pct) else max(1, round(side * crop_pct))
    top, left = (round((side - seen) * fraction) for fraction in place)  # half to even, like torchvision
    return images[:, top : top + seen, left : left + seen]
