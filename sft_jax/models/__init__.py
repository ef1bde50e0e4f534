"""The networks, by their torchvision names."""

import difflib
import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from sft_jax.errors import UserError
from sft_jax.models.network import Functional, Head, initial_arrays
from sft_jax.models.resnet import SHAPES, STEMS, ResNet

__all__ = ["SHAPES", "STEMS", "Functional", "Head", "ResNet", "builder", "initial_arrays"]


def builder(
    config: ConfigDict,
    num_classes: int,
    *,
    precision: str = "float32",
    axis_name: str | None = None,
    stochastic_depth: float = 0.0,
) -> Callable[[nnx.Rngs], ResNet]:
    """The constructor of the network that `config` (the part `model` of the configuration) describes.

    Args:
      config: `name` and `stem` are read.
      num_classes: outputs of the head.
      precision: dtype of activations and products, "float32" or "bfloat16".
      axis_name: see `ResNet`.
      stochastic_depth: see `ResNet`.

    Raises:
      UserError: there is no such network.
    """
    if config.name not in SHAPES:
        near = difflib.get_close_matches(config.name, SHAPES, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown config.model.name={config.name!r}; the nearest one is {near!r}")
    settings = {
        "stem": config.stem,
        "dtype": jnp.dtype(precision),
        "axis_name": axis_name,
        "stochastic_depth": stochastic_depth,
    }
    return functools.partial(_build, SHAPES[config.name], num_classes, settings)


def _build(shape, num_classes, settings, rngs: nnx.Rngs) -> ResNet:
    return ResNet(shape, num_classes, **settings, rngs=rngs)
