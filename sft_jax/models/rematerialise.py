"""Rematerialisation (Chen et al., 2016, arXiv:1604.06174): activations within blocks are computed again, not kept."""

from typing import Any

import jax
from flax import nnx


class Rematerialising(nnx.Module):
    """A network that runs its blocks with `run_block`.

    Attributes:
      rematerialise: whether the backward pass computes the activations within each block again from its input, for
        about a third more arithmetic. Only the inputs of blocks are kept.
    """

    rematerialise = False

    def run_block(self, block: Any, *arguments: Any, **settings: Any) -> jax.Array:
        """Returns `block(*arguments, **settings)`, where the settings are no arrays that gradients are needed of."""
        if not self.rematerialise:
            return block(*arguments, **settings)
        run = nnx.remat(lambda block, *arguments: block(*arguments, **settings))
        return run(block, *arguments)
