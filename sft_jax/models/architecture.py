"""Descriptions of networks: their constructor, head, parameter depths, and mapping to the reference implementation.

Each family of networks is one file of this package and is registered in `models.ARCHITECTURES`. Its module has
`features(*inputs, train=, key=) -> Features`, `head(pooled)`, `__call__`, which composes these two, and
`stages(*inputs)`, which yields activations by name for comparison with the reference; the inputs are images, or tokens
and segments. All randomness comes from `key`; nnx's random streams, and so `nnx.Dropout`, are not supported.
"""

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from sft_jax.errors import UserError
from sft_jax.models.positions import Positions

# Depth of a parameter: its stage, counted from the input, and its block within the stage.
Depth = tuple[int, int]
# The head comes after all stages.
HEAD_DEPTH: Depth = (sys.maxsize, 0)


class Features(NamedTuple):
    """The output of a backbone for a batch. XLA eliminates what a task does not use.

    Attributes:
      pooled: [n, channels], the input of a linear head.
      maps: [n, height / stride, width / stride, channels] after each stage, highest resolution first; of texts
        [n, tokens, channels] after each layer.
    """

    pooled: jax.Array
    maps: tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """The preprocessing with which the reference's weights were evaluated.

    Attributes:
      size: side of the network's square input in pixels.
      resize: size of the shorter side before the centre crop, in pixels.
      interpolation: "bilinear" or "bicubic".
      mean, std: mean and standard deviation per channel, for values in 0..1.
    """

    size: int = 224
    resize: int = 256
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


class Rule(NamedTuple):
    """Maps a kind of parameter to the reference if the common table (`convert/keys.py`) does not apply.

    Attributes:
      ours: pattern that matches our whole name.
      theirs: the reference's name, with \\1 etc. for groups of the pattern.
      axes: permutation from the reference's axes to ours.
    """

    ours: str
    theirs: str
    axes: tuple[int, ...]


class Texts(NamedTuple):
    """The texts that a network takes.

    Attributes:
      vocabulary: number of kinds of tokens.
      padding: number of the token that pads texts at their ends.
      longest: the most tokens of a text.
    """

    vocabulary: int
    padding: int
    longest: int

    def drawn(self, random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Draws tokens of all kinds but padding: int32 of `shape`."""
        others = random.integers(0, self.vocabulary - 1, shape, np.int32)
        return others + (others >= self.padding).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network of a family.

    Attributes:
      name: its name in `model.name` and in the reference.
      family: name of the family, for the converters.
      make: (outputs, *, stem, dtype, axis_name, stochastic_depth, rngs) -> the module; with `positions` also
        size, that of the images in pixels, by default the usual one.
      head: path of the last layer, e.g. "fc"; its parameters are `kernel` [channels, outputs] and `bias`.
      channels, strides: channels and strides of `Features.maps`.
      pooled: channels of `Features.pooled`; None for those of the last map.
      locate: (name of a parameter or statistic outside the head) -> its `Depth`, or None if the name is unknown.
      stems: the values of `model.stem`, each with the name and the kernel size of its first convolution.
      pretrained: see `Pretrained`; assumed for weights that do not record their preprocessing.
      pretrained_by: name of those weights in messages.
      positions: its position embeddings; None for networks without, which take images of any size.
      smallest: side in pixels of the smallest images that leave something of every map.
      map_epsilon: that of the layer normalisation which its maps need before heads that mix them, because they are sums
        of residual branches; None if they are normalised.
      dilates: whether `make` takes output_stride, 32 or, with dilated convolutions, 16 or 8.
      texts: the texts that it takes; None for networks of images. The inputs of texts are tokens int32 [n, length],
        padded at the end, and segments uint8 [n, length], and the attributes that concern images have no meaning.
      reference: the library whose parameter names are used.
      module_path: (path of one of our modules) -> the reference's path of it.
      rules: see `Rule`.
    """

    name: str
    family: str
    make: Callable[..., nnx.Module]
    head: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    locate: Callable[[str], Depth | None]
    pooled: int | None = None
    stems: tuple[tuple[str, str, int], ...] = ()
    pretrained: Pretrained = Pretrained()
    reference: str = "torchvision"
    module_path: Callable[[str], str] = lambda path: path
    rules: tuple[Rule, ...] = ()
    pretrained_by: str = "torchvision's IMAGENET1K_V1"
    positions: Positions | None = None
    smallest: int = 1
    map_epsilon: float | None = None
    dilates: bool = False
    texts: Texts | None = None

    @property
    def dense(self) -> bool:
        """Whether it gives every pixel outputs, instead of the whole image."""
        return False

    @property
    def last(self) -> str:
        """The path of a layer of the head whose `bias` has an entry for each output."""
        return self.head

    def gives_outputs(self, name: str) -> bool:
        """Returns whether a parameter of the head belongs to a layer whose outputs are those of the network."""
        return True

    def starts_from(self, other: "Architecture") -> bool:
        """Returns whether training can start from weights of `other`, see `adopted`."""
        return other.name == self.name

    def adopted(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns weights of a network that it can start from under its own names, without those it does not have."""
        return dict(arrays)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of a batch's arrays that its module takes."""
        return ("image",) if self.texts is None else ("tokens", "segments")

    def example(self, count: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Returns the shapes of `count` of its usual inputs; of texts, 128 tokens."""
        if self.texts is None:
            side = self.pretrained.size
            return (jax.ShapeDtypeStruct((count, side, side, 3), np.float32),)
        return tuple(jax.ShapeDtypeStruct((count, 128), dtype) for dtype in (np.int32, np.uint8))

    @property
    def width(self) -> int:
        """The number of inputs of the head."""
        return self.channels[-1] if self.pooled is None else self.pooled

    def is_head(self, name: str) -> bool:
        """Returns whether a parameter belongs to the head."""
        return name.startswith(f"{self.head}.")

    def depth(self, name: str) -> Depth:
        """Returns the depth of a parameter; the head comes after all stages.

        Raises:
          ValueError: the name is unknown. There is no default, because layer-wise decay and gradual unfreezing depend
            on the depth.
        """
        if self.is_head(name):
            return HEAD_DEPTH
        depth = self.locate(name)
        if depth is None:
            raise ValueError(f"{self.name} has no rule for the depth of {name!r}: extend `locate` of its family")
        return depth

    def rule(self, name: str) -> Rule | None:
        """Returns the first of `rules` for a parameter; None if the common table applies."""
        return next((rule for rule in self.rules if re.fullmatch(rule.ours, name)), None)

    def check_inputs(self, inputs: tuple[str, ...], task: str) -> None:
        """Raises UserError if the network does not take `inputs`, those of the `config.task` called `task`."""
        if inputs != self.inputs:
            takes, use = ("images", "an image task") if self.texts is None else ("texts", "a task of texts")
            raise UserError(f"model.name={self.name} takes {takes}, which task={task} does not have; use {use}")

    def check_size(self, size: int, setting: str = "config.data.size") -> None:
        """Raises UserError if the network cannot take images of `size` pixels, the value of `setting`."""
        if size < self.smallest:
            raise UserError(f"{setting}={size} is too small for {self.name}, which takes {self.smallest} px or more")
        if self.positions is not None:
            self.positions.check(size, setting)

    def size_of(self, arrays: Mapping[str, Any]) -> int | None:
        """Returns the size in pixels of the images that weights are for; None for any, or if their shape fits none."""
        return None if self.positions is None else self.positions.size_of(arrays)

    def for_size(self, arrays: Mapping[str, np.ndarray], size: int) -> tuple[dict[str, np.ndarray], str]:
        """Returns weights for images of `size` pixels, and what was changed, to end a sentence; empty for nothing."""
        return (dict(arrays), "") if self.positions is None else self.positions.resampled(arrays, size)

    def decays(self, name: str) -> bool:
        """Returns whether weight decay applies to a parameter if biases and normalisation scales are exempt."""
        return name.endswith((".kernel", ".embedding"))

    def matrix_axes(self, name: str, axes: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Returns the input and output axes of a parameter that Muon orthogonalises as a matrix.

        These are kernels outside the head (https://kellerjordan.github.io/posts/muon/); None for all others.
        """
        if not name.endswith(".kernel") or self.is_head(name):
            return None
        return {4: ((0, 1, 2), (3,)), 2: ((0,), (1,))}.get(axes)

    def stem_of(self, arrays: Mapping[str, np.ndarray]) -> str:
        """Returns the first of `stems` whose kernel size fits these weights, or the first one if none fits."""
        sizes = {name: arrays[f"{path}.kernel"].shape[0] for name, path, _ in self.stems if f"{path}.kernel" in arrays}
        fitting = [name for name, _, size in self.stems if sizes.get(name) == size]
        return (fitting or [name for name, *_ in self.stems] or ["imagenet"])[0]

    def check_stem(self, arrays: Mapping[str, np.ndarray], stem: str, *, source: str) -> None:
        """Raises UserError if `model.stem` = `stem` has another kernel size than the weights of `source`.

        Stems with the same kernel size accept the same weights.
        """
        if not self.stems:
            return
        kernels = {name: (f"{path}.kernel", size) for name, path, size in self.stems}
        key, wanted = kernels[stem]
        actual = arrays[key].shape[0] if key in arrays else None
        if actual in {size for _, size in kernels.values()} and actual != wanted:
            raise UserError(
                f"the weights of {source} have a {actual}x{actual} stem, but model.stem={stem} is "
                f"{wanted}x{wanted}; use --config.model.stem={self.stem_of(arrays)}"
            )


@dataclasses.dataclass(frozen=True)
class Builder:
    """The constructor of a network.

    Attributes:
      architecture: the architecture of the network.
      outputs: size of its head.
      settings: further arguments of `Architecture.make`.
      products: how products are computed, see `precision.Precision`.
      rematerialise: see `block_network.BlockNetwork`.
    """

    architecture: Architecture
    outputs: int
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    products: str | None = None
    rematerialise: bool = False

    def __call__(self, rngs: nnx.Rngs) -> nnx.Module:
        """Returns the module with initial weights drawn from `rngs`. Raises UserError if it cannot rematerialise."""
        module = self.architecture.make(self.outputs, **self.settings, rngs=rngs)
        if self.rematerialise:
            if not hasattr(module, "rematerialise"):
                raise UserError(f"finetune.rematerialise=blocks: {self.architecture.name} has no blocks; use none")
            module.rematerialise = True
        return module


def located_by(patterns: Sequence[tuple[str, Callable[[re.Match], Depth]]]) -> Callable[[str], Depth | None]:
    """Makes `Architecture.locate` from patterns that match the beginnings of names; the first match wins."""
    compiled = [(re.compile(pattern), depth) for pattern, depth in patterns]

    def locate(name: str) -> Depth | None:
        return next((depth(match) for pattern, depth in compiled if (match := pattern.match(name))), None)

    return locate
