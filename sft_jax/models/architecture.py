"""What a family of networks says of its members: how one is built, where its head is, how deep a parameter lies, and
how its names and layouts map to those of the reference implementation.

A family is one file of this package, whose networks are registered in `models.ARCHITECTURES`. Its module has
`features(images, train=, key=) -> Features`, `head(pooled)`, `__call__`, which is the one after the other, and
`stages(images)`, which yields activations by name for comparisons with the reference. Randomness comes from `key` alone
(there is no place for nnx's own streams, so not `nnx.Dropout`).
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from sft_jax.errors import UserError

# Where a parameter lies: its stage, counted from the input, and its block in there.
Depth = tuple[int, int]


class Features(NamedTuple):
    """What a backbone makes of a batch. XLA drops what a task does not use.

    Attributes:
      pooled: [n, channels], what a linear head sees.
      maps: [n, height / stride, width / stride, channels] after each stage, finest first.
    """

    pooled: jax.Array
    maps: tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """How images were prepared when the reference's weights were scored.

    Attributes:
      size: side in pixels of the square that the network sees.
      resize: the shorter side is brought to so many pixels before the centre is cropped.
      interpolation: "bilinear" or "bicubic".
      mean, std: of each channel, on the scale 0..1.
    """

    size: int = 224
    resize: int = 256
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


class Rule(NamedTuple):
    """How one kind of parameter maps to the reference where the common table (`convert/keys.py`) does not apply.

    Attributes:
      ours: pattern of our whole name.
      theirs: the reference's name, with \\1 and so on for groups of the pattern.
      axes: permutation of the reference's axes that gives ours.
    """

    ours: str
    theirs: str
    axes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One network of a family.

    Attributes:
      name: as the config's `model.name` and the reference have it.
      family: what the converters know it by.
      make: (outputs, *, stem, dtype, axis_name, stochastic_depth, rngs) -> the module.
      head: path of the last layer, as "fc"; its parameters are `kernel` [channels, outputs] and `bias`.
      channels, strides: of `Features.maps`.
      locate: (name of a parameter or statistic outside the head) -> its `Depth`, None for a name that it does not know.
      stems: the values of `model.stem`, each with the name and the kernel size of its first convolution.
      pretrained: see `Pretrained`; assumed for weights that do not say how images were prepared.
      pretrained_by: whose weights those are, for messages.
      reference: the library whose names the parameters have.
      rules: see `Rule`.
    """

    name: str
    family: str
    make: Callable[..., nnx.Module]
    head: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    locate: Callable[[str], Depth | None]
    stems: tuple[tuple[str, str, int], ...] = ()
    pretrained: Pretrained = Pretrained()
    reference: str = "torchvision"
    rules: tuple[Rule, ...] = ()
    pretrained_by: str = "torchvision's IMAGENET1K_V1"

    def is_head(self, name: str) -> bool:
        """Whether a parameter belongs to the head."""
        return name.startswith(f"{self.head}.")

    def depth(self, name: str) -> Depth:
        """Returns where a parameter lies; the head comes after all stages.

        Raises:
          ValueError: the family does not know the name. It must not be taken for anything else: layer-wise decay and
            gradual unfreezing go by it.
        """
        if self.is_head(name):
            return len(self.strides) + 1, 0
        found = self.locate(name)
        if found is None:
            raise ValueError(f"{self.name} has no rule for the depth of {name!r}: mend `locate` of its family")
        return found

    def rule(self, name: str) -> Rule | None:
        """Returns the first of `rules` for a parameter; None if the common table applies."""
        return next((rule for rule in self.rules if re.fullmatch(rule.ours, name)), None)

    def decays(self, name: str) -> bool:
        """Whether weight decay applies to a parameter where it spares biases and the scales of norms."""
        return name.endswith(".kernel")

    def matrix_axes(self, name: str, axes: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Returns the input and the output axes of a parameter that Muon orthogonalises as a matrix.

        Of kernels only, and not of the head (https://kellerjordan.github.io/posts/muon/); None for all others.
        """
        if not name.endswith(".kernel") or self.is_head(name):
            return None
        return {4: ((0, 1, 2), (3,)), 2: ((0,), (1,))}.get(axes)

    def stem_of(self, arrays: Mapping[str, np.ndarray]) -> str:
        """Returns the first of `stems` whose kernel size these weights have; the first of all where none has it."""
        sizes = {name: arrays[f"{path}.kernel"].shape[0] for name, path, _ in self.stems if f"{path}.kernel" in arrays}
        fitting = [name for name, _, size in self.stems if sizes.get(name) == size]
        return (fitting or [name for name, *_ in self.stems] or ["imagenet"])[0]

    def check_stem(self, arrays: Mapping[str, np.ndarray], stem: str, *, source: str) -> None:
        """Raises UserError where a network with `model.stem` = `stem` has another kernel than the weights of `source`.

        Stems of one kernel size share their weights: pretrained kernels go into all of them.
        """
        if not self.stems:
            return
        kernels = {name: (f"{path}.kernel", size) for name, path, size in self.stems}
        key, wanted = kernels[stem]
        found = arrays[key].shape[0] if key in arrays else None
        if found in {size for _, size in kernels.values()} and found != wanted:
            raise UserError(
                f"the weights of {source} have a {found}x{found} stem, but model.stem={stem} has one of "
                f"{wanted}x{wanted}; use --config.model.stem={self.stem_of(arrays)}"
            )


@dataclasses.dataclass(frozen=True)
class Builder:
    """The constructor of a network: called with the streams of its initial weights, it returns the module.

    Attributes:
      architecture: of the network.
      outputs: of its head.
      settings: further arguments of `Architecture.make`.
    """

    architecture: Architecture
    outputs: int
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, rngs: nnx.Rngs) -> nnx.Module:
        """Draws the initial weights from `rngs` and returns the module."""
        return self.architecture.make(self.outputs, **self.settings, rngs=rngs)


def located_by(patterns: Sequence[tuple[str, Callable[[re.Match], Depth]]]) -> Callable[[str], Depth | None]:
    """Makes `Architecture.locate` of patterns for the beginnings of names; the first that matches counts."""
    compiled = [(re.compile(pattern), depth) for pattern, depth in patterns]

    def locate(name: str) -> Depth | None:
        return next((depth(match) for pattern, depth in compiled if (match := pattern.match(name))), None)

    return locate
