"""Augmentation of training images on the device. Pure functions, part of the compiled step."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from sft_jax.config.schema import KEYS
from sft_jax.data import colour, crops, policies
from sft_jax.data.pixels import check_bytes, normalize, resize

# Indices folded into the random key of a batch, one per purpose.
CROP, FLIP, POLICY, ERASING, BOX, VERTICAL_FLIP, ROTATION, JITTER, JITTER_ORDER, GRAY, BLUR, BLUR_SIGMA = range(12)

Policy = Callable[[jax.Array, jax.Array], jax.Array]

# What `data.augment` stands for.
PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "light": {"crop_scale": (0.5, 1.0), "color_jitter": (0.2,)},
    "medium": {"crop_scale": (0.25, 1.0), "auto_augment": "trivial", "random_erasing": 0.1},
    "strong": {
        "crop_scale": (0.08, 1.0),
        "auto_augment": "rand",
        "rand_augment_magnitude": 15,
        "random_erasing": 0.25,
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Augments a batch and preprocesses it like `preprocess`; each part is torchvision's transform of that name.

    In this order: random flips; `RandomCrop`, or `RandomResizedCrop`; `RandomRotation`; a policy; `ColorJitter`;
    `RandomGrayscale`; `GaussianBlur`; normalisation; `RandomErasing`.

    Attributes:
      size: side length of the result in pixels.
      mean, std: see `preprocess`.
      crop_padding: maximum shift of a random crop in pixels after resizing, over a black border; 0 for no crop.
      crop_scale: least and greatest relative area of a random resized crop, which replaces the former; empty for none.
      crop_ratio: its least and greatest ratio of width to height.
      interpolation: a key of `METHODS`, of resizing.
      flip, vertical_flip: whether to mirror half of the images left to right, and top to bottom.
      rotation: maximum angle in degrees.
      policy: (one image [size, size, 3] with integer values in 0..255, key) -> image.
      color_jitter: strengths, see `colour.jitter`; empty for none.
      grayscale, blur, erasing: probabilities.
    """

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    crop_padding: int = 0
    crop_scale: Sequence[float] = ()
    crop_ratio: Sequence[float] = (0.75, 1.33333)
    interpolation: str = "bilinear"
    flip: bool = False
    vertical_flip: bool = False
    rotation: float = 0.0
    policy: Policy | None = None
    color_jitter: Sequence[float] = ()
    grayscale: float = 0.0
    blur: float = 0.0
    erasing: float = 0.0

    def __call__(self, images: jax.Array, key: jax.Array, first: jax.Array | int, total: int) -> jax.Array:
        """Maps uint8 [local batch, height, width, 3] to float32 [local batch, size, size, 3].

        Args:
          images: this device's shard of the batch.
          key: random key for the global batch, so that results do not depend on the number of devices.
          first: position of the first image in the global batch; may be traced.
          total: global batch size.

        Raises:
          TypeError: see `preprocess`.
        """
        check_bytes(images)
        draw = Draws(key, first, total, len(images))
        pixels = self._cropped(images, draw) if self.crop_scale else self._padded(images, draw)
        if self._colours():
            pixels = jnp.round(pixels.astype(jnp.float32))
        if self.rotation:
            angles = jnp.deg2rad(self.rotation * draw.uniform(ROTATION, -1, 1))
            pixels = jax.vmap(policies.rotate)(pixels, angles)
        if self.policy is not None:
            pixels = jax.vmap(self.policy)(pixels, draw.own(jax.random.split(draw.key(POLICY), total)))
        if self.color_jitter:
            order = jax.random.permutation(draw.key(JITTER_ORDER), 4)
            strengths = draw.own(jax.random.uniform(draw.key(JITTER), (total, 4), minval=-1, maxval=1))
            pixels = colour.jitter(pixels, strengths, order, self.color_jitter)
        if self.grayscale:
            pixels = _where(draw.coins(GRAY, self.grayscale), jax.vmap(colour.gray)(pixels), pixels)
        if self.blur:
            blurred = colour.blur(pixels, draw.uniform(BLUR_SIGMA, *colour.SIGMAS))
            pixels = _where(draw.coins(BLUR, self.blur), blurred, pixels)
        inputs = normalize(pixels, self.mean, self.std)
        if self.erasing:
            keys = draw.own(jax.random.split(draw.key(ERASING), total))
            inputs = jax.vmap(functools.partial(_erased, rate=self.erasing))(inputs, keys)
        return inputs

    def _colours(self) -> bool:
        """Returns whether some part needs floating-point images with integer values."""
        return any((self.rotation, self.policy, self.color_jitter, self.grayscale, self.blur))

    def _cropped(self, images: jax.Array, draw: "Draws") -> jax.Array:
        """Resizes random boxes of flipped images; `crops.resample` flips, because that costs nothing there."""
        never = jnp.zeros(len(images), bool)
        across = draw.coins(FLIP) if self.flip else never
        down = draw.coins(VERTICAL_FLIP) if self.vertical_flip else never
        sides = images.shape[1], images.shape[2]
        boxes = draw.own(crops.random_boxes(draw.key(BOX), draw.total, sides, self.crop_scale, self.crop_ratio))
        cubic, flips = self.interpolation == "bicubic", jnp.stack([down, across], 1)
        return crops.resample(images, boxes, self.size, cubic=cubic, flips=flips)

    def _padded(self, images: jax.Array, draw: "Draws") -> jax.Array:
        """Resizes and flips whole images, and shifts them by up to `crop_padding` pixels over black."""
        pixels = resize(images, self.size, self.interpolation)
        if self.flip:
            pixels = _where(draw.coins(FLIP), pixels[:, :, ::-1], pixels)
        if self.vertical_flip:
            pixels = _where(draw.coins(VERTICAL_FLIP), pixels[:, ::-1], pixels)
        if not self.crop_padding:
            return pixels
        shifts = draw.own(jax.random.randint(draw.key(CROP), (draw.total, 2), 0, 2 * self.crop_padding + 1))
        edge = (self.crop_padding, self.crop_padding)
        padded = jnp.pad(pixels, ((0, 0), edge, edge, (0, 0)))
        crop = functools.partial(lax.dynamic_slice, slice_sizes=(self.size, self.size, 3))
        return jax.vmap(lambda image, shift: crop(image, (shift[0], shift[1], 0)))(padded, shifts)


@dataclasses.dataclass(frozen=True)
class Draws:
    """Random numbers of a batch for each purpose; `local` of them, from `first` on, belong to this device."""

    batch_key: jax.Array
    first: jax.Array | int
    total: int
    local: int

    def key(self, purpose: int) -> jax.Array:
        """Returns the key of a purpose."""
        return jax.random.fold_in(self.batch_key, purpose)

    def own(self, draws: jax.Array) -> jax.Array:
        """Returns this device's rows of draws for the whole batch."""
        return lax.dynamic_slice_in_dim(draws, self.first, self.local)

    def coins(self, purpose: int, probability: float = 0.5) -> jax.Array:
        """Draws bool [local], true with this probability."""
        return self.own(jax.random.bernoulli(self.key(purpose), probability, (self.total,)))

    def uniform(self, purpose: int, low: float, high: float) -> jax.Array:
        """Draws float32 [local], uniform between two bounds."""
        return self.own(jax.random.uniform(self.key(purpose), (self.total,), minval=low, maxval=high))


def _where(chosen: jax.Array, images: jax.Array, others: jax.Array) -> jax.Array:
    return jnp.where(chosen[:, None, None, None], images, others)


def parts(config: ConfigDict) -> dict[str, Any]:
    """Returns the keys of `config`, the section `data`, with those that `data.augment` sets and that have defaults."""
    values = dict(config)
    preset = PRESETS[config.augment]
    return values | {name: value for name, value in preset.items() if values[name] == KEYS[f"data.{name}"].default}


def make_augment(config: ConfigDict, size: int | None = None) -> Augmentation:
    """Returns the augmentation of `config`, the section `data` of the config; `size` overrides it."""
    chosen = parts(config)
    policy: Policy | None = None
    if chosen["auto_augment"] == "trivial":
        policy = policies.trivial_augment
    elif chosen["auto_augment"] == "augmix":
        policy = policies.aug_mix
    elif chosen["auto_augment"] == "rand":
        policy = functools.partial(
            policies.rand_augment,
            operations=chosen["rand_augment_operations"],
            magnitude=chosen["rand_augment_magnitude"],
        )
    jitter = chosen["color_jitter"]
    return Augmentation(
        size=size or config.size,
        policy=policy,
        # One number is for all but the hue, as in timm.
        color_jitter=(*jitter * 3, 0.0) if len(jitter) == 1 else jitter,
        erasing=chosen["random_erasing"],
        **{name: chosen[name] for name in _NAMED},
    )


# Keys of the section `data` that are attributes of `Augmentation`.
_NAMED = (
    "mean",
    "std",
    "interpolation",
    "crop_padding",
    "crop_scale",
    "crop_ratio",
    "flip",
    "vertical_flip",
    "rotation",
    "grayscale",
    "blur",
)


def _erased(image: jax.Array, key: jax.Array, *, rate: float) -> jax.Array:
    """Random erasing (Zhong et al., 2020, arXiv:1708.04896) of a normalised image [height, width, 3], with zeros.

    Area and aspect ratio follow `torchvision.transforms.RandomErasing`: 2 to 33% of the image, 0.3 to 3.3 times as
    wide as high. A rectangle that does not fit is clipped, where torchvision draws again.
    """
    height, width, _ = image.shape
    on_key, area_key, ratio_key, place_key = jax.random.split(key, 4)
    area = jax.random.uniform(area_key, minval=0.02, maxval=0.33) * height * width
    ratio = jnp.exp(jax.random.uniform(ratio_key, minval=jnp.log(0.3), maxval=jnp.log(3.3)))
    sides = jnp.round(jnp.minimum(jnp.stack([jnp.sqrt(area / ratio), jnp.sqrt(area * ratio)]), min(height, width)))
    free = jnp.array([height, width], jnp.float32) - sides
    corner = jnp.floor(jax.random.uniform(place_key, (2,)) * (free + 1))
    rows, columns = jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32)
    inside_rows = (rows >= corner[0]) & (rows < corner[0] + sides[0])
    inside_columns = (columns >= corner[1]) & (columns < corner[1] + sides[1])
    inside = inside_rows[:, None] & inside_columns[None, :] & jax.random.bernoulli(on_key, rate)
    return jnp.where(inside[..., None], 0.0, image)
