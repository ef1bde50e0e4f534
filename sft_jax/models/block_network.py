"""What networks of blocks have in common, whatever their blocks are."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import nnx

from sft_jax.models.architecture import Features
from sft_jax.models.layers import Linear


class BlockNetwork(nnx.Module):
    """A network that runs its blocks with `run_block`; subclasses add `features` and `head`.

    Attributes:
      rematerialise: whether the backward pass computes the activations within each block again from its input, for
        about a third more arithmetic (Chen et al., 2016, arXiv:1604.06174). Only the inputs of blocks are kept.
    """

    rematerialise = False
    head: Any
    features: Callable[..., Features]

    def __call__(self, *inputs: jax.Array, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """Maps normalised images [batch, height, width, 3], or what `features` takes, to logits [batch, num_classes].

        With `train` batch norm uses batch statistics and updates the running ones. `key` draws the blocks, or branches
        of blocks, that each image skips; without it none is skipped.
        """
        return self.head(self.features(*inputs, train=train, key=key).pooled)

    def maps(self, x: jax.Array, *, train: bool = False, key: jax.Array | None = None) -> tuple[jax.Array, ...]:
        """Returns `Features.maps` of normalised images [batch, height, width, 3]."""
        return self.features(x, train=train, key=key).maps

    def run_block(self, block: Any, *arguments: Any, **settings: Any) -> jax.Array:
        """Returns `block(*arguments, **settings)`, where the settings are no arrays that gradients are needed of."""
        if not self.rematerialise:
            return block(*arguments, **settings)
        run = nnx.remat(lambda block, *arguments: block(*arguments, **settings))
        return run(block, *arguments)


class StagedNetwork(BlockNetwork):
    """A network whose maps are the outputs of the last blocks of its stages.

    Subclasses add `pool` and `stages`, which yields (name, activations [batch, height, width, channels]) after the stem
    and within stages; the names of blocks are STAGE.blocks.INDEX.
    """

    pool: Callable[[jax.Array], jax.Array]
    stages: Callable[..., Iterator[tuple[str, jax.Array]]]

    def features(self, x: jax.Array, *, train: bool = False, key: jax.Array | None = None) -> Features:
        """Maps normalised images [batch, height, width, 3] to `Features`."""
        maps = self.maps(x, train=train, key=key)
        return Features(self.pool(maps[-1]), maps)

    def maps(self, x: jax.Array, *, train: bool = False, key: jax.Array | None = None) -> tuple[jax.Array, ...]:
        """See `BlockNetwork`."""
        # Later blocks overwrite earlier ones, which leaves the last block of each stage.
        last = {name.rpartition(".blocks.")[0]: activations for name, activations in self.stages(x, key=key)}
        return tuple(activations for stage, activations in last.items() if stage)


class PositionsFirstNetwork(BlockNetwork):
    """A network whose blocks take [height, width, batch, channels], for which `ops.conv2d` is fast; its head is `fc`.

    Subclasses add `_stages`, which yields (name, activations in this layout) after the stem and after every block; the
    name of a block begins with its stage and a dot.
    """

    fc: Linear

    def _stages(self, x: jax.Array, *, train: bool, key: jax.Array | None = None) -> Iterator[tuple[str, jax.Array]]:
        raise NotImplementedError

    def features(self, x: jax.Array, *, train: bool = False, key: jax.Array | None = None) -> Features:
        """Maps normalised images [batch, height, width, 3] to `Features`; `pooled` has the parameters' dtype."""
        maps = self.maps(x, train=train, key=key)
        return Features(self.pool(maps[-1]), maps)

    def maps(self, x: jax.Array, *, train: bool = False, key: jax.Array | None = None) -> tuple[jax.Array, ...]:
        """See `BlockNetwork`."""
        # Later blocks overwrite earlier ones, which leaves the last block of each stage.
        last = {name.partition(".")[0]: block for name, block in self._stages(x, train=train, key=key)}
        maps = [block for name, block in last.items() if name != "stem"]
        return tuple(block.transpose(2, 0, 1, 3) for block in maps)

    def pool(self, last: jax.Array) -> jax.Array:
        """Maps the last of `Features.maps` to `Features.pooled`."""
        return last.transpose(1, 2, 0, 3).mean((0, 1), dtype=self.fc.kernel[...].dtype)

    def head(self, features: jax.Array) -> jax.Array:
        """Maps features [batch, channels] to logits [batch, num_classes]."""
        return self.fc(features)

    def stages(self, x: jax.Array, *, train: bool = False) -> Iterator[tuple[str, jax.Array]]:
        """Yields (name, activations [batch, height, width, channels]) after the stem and after every block."""
        for name, activations in self._stages(x, train=train):
            yield name, activations.transpose(2, 0, 1, 3)
