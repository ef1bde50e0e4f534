"""The networks, under the names of their reference implementations."""

import difflib
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from sft_jax.errors import UserError
from sft_jax.models import (
    bert,
    convnext,
    dinov3,
    efficientnet,
    mit,
    mobilenet,
    modernbert,
    regnet,
    resnet,
    segmentation,
    swin,
    vit,
)
from sft_jax.models.architecture import Architecture, Builder
from sft_jax.models.dense_heads import HEADS
from sft_jax.models.network import HeadNetwork, Network, initial_arrays
from sft_jax.models.precision import PRECISIONS

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "HeadNetwork",
    "Network",
    "architecture",
    "builder",
    "check_head",
    "find",
    "initial_arrays",
]

# model.name -> architecture.
ARCHITECTURES: dict[str, Architecture] = {
    **resnet.ARCHITECTURES,
    **efficientnet.ARCHITECTURES,
    **mobilenet.ARCHITECTURES,
    **regnet.ARCHITECTURES,
    **convnext.ARCHITECTURES,
    **swin.ARCHITECTURES,
    **mit.ARCHITECTURES,
    **vit.ARCHITECTURES,
    **dinov3.ARCHITECTURES,
    **bert.ARCHITECTURES,
    **modernbert.ARCHITECTURES,
}


def find(name: str) -> Architecture | None:
    """Returns the architecture called `name`, for segmentation see `segmentation.named`; None if there is none."""
    return ARCHITECTURES.get(name) or segmentation.named(name, ARCHITECTURES)


def architecture(name: str, setting: str = "config.model.name=") -> Architecture:
    """Returns the architecture called `name`, the value of `setting`. Raises UserError if there is none."""
    found = find(name)
    if found is None:
        kind, _, backbone = name.partition("_")
        start = f"{kind}_" if kind in HEADS else ""
        near = difflib.get_close_matches(backbone if start else name, ARCHITECTURES, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown {setting}{name!r}; did you mean {start + near!r}?")
    return found


def check_head(name: str, *, dense: bool, task: str) -> None:
    """Raises UserError if the network `name` has outputs of pixels and the task not (`dense`), or the reverse."""
    found = architecture(name)
    if dense and not found.dense:
        heads = ", ".join(segmentation.usable(found))
        raise UserError(
            f"config.model.name={name} has outputs of whole images, but task={task} needs those of pixels: use {heads}"
        )
    if found.dense and not dense:
        raise UserError(
            f"config.model.name={name} has outputs of pixels, but task={task} needs those of whole images: use "
            f"{found.backbone.name}"  # type: ignore[attr-defined]
        )


def builder(
    config: ConfigDict,
    outputs: int,
    *,
    size: int | None = None,
    precision: str = "float32",
    axis_name: str | None = None,
    stochastic_depth: float = 0.0,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    rematerialise: bool = False,
) -> Builder:
    """Returns the constructor of the network that `config`, the group `model` of the configuration, describes.

    Args:
      config: `name` and `stem` are read.
      outputs: size of the head.
      size: side of the images in pixels, of which position embeddings depend; by default that of pretrained weights.
      precision: a key of `PRECISIONS`.
      axis_name: the mapped axis over which batch norm's statistics are averaged in training.
      stochastic_depth: drop rate of the last block in training.
      dropout: drop rate of networks of texts in training.
      attention_dropout: that of their attention weights.
      rematerialise: whether the activations within blocks are computed again in the backward pass.

    Raises:
      UserError: the network or its stem is unknown, or it cannot take images of this size.
    """
    found = architecture(config.name)
    stems = [stem for stem, *_ in found.stems] or ["imagenet"]
    if config.stem not in stems:
        raise UserError(f"config.model.stem={config.stem!r}: {config.name} has only {', '.join(stems)}")
    settings: dict[str, Any] = {
        "stem": config.stem,
        "dtype": jnp.dtype(PRECISIONS[precision].dtype),
        "axis_name": axis_name,
        "stochastic_depth": stochastic_depth,
    }
    rates = {"dropout": dropout, "attention_dropout": attention_dropout}
    if found.texts is not None:
        settings |= rates
    for name, rate in rates.items():
        if rate and found.texts is None:
            raise UserError(f"config.regularization.{name}={rate}: {config.name} has no dropout; use 0")
    if size is not None:
        found.check_size(size)
        settings |= {"size": size} if found.positions is not None else {}
    return Builder(found, outputs, settings, PRECISIONS[precision].products, rematerialise)
