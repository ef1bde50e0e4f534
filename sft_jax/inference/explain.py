"""Which parts of an image a network's output depends on: Grad-CAM, and attention rollout for vision transformers."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from sft_jax.data.crops import cropped
from sft_jax.data.preprocess import Preprocess
from sft_jax.errors import UserError
from sft_jax.runtime.files import write_bytes

# Colours of a heat map from 0 to 1, linear in between: dark blue, blue, cyan, yellow, red, dark red.
STOPS = np.array([0.0, 0.125, 0.375, 0.625, 0.875, 1.0])
COLOURS = np.array([[0, 0, 128], [0, 0, 255], [0, 255, 255], [255, 255, 0], [255, 0, 0], [128, 0, 0]])
# Share of the heat map in an overlay.
OPACITY = 0.5


def method(model: Any) -> str:
    """Returns the name of the method for a network: "Grad-CAM" or "attention rollout".

    Raises:
      UserError: the network gives neither attention weights nor a path from its last feature map to its outputs.
    """
    if hasattr(model, "attention"):
        return "attention rollout"
    if hasattr(model, "pool"):
        return "Grad-CAM"
    raise UserError(f"{type(model).__name__} cannot be explained: it has neither `attention` nor `pool`")


@nnx.jit
def heat_maps(model: Any, inputs: jax.Array, outputs: jax.Array) -> jax.Array:
    """Computes how much each region of an image contributes to an output of the network.

    Args:
      model: an NNX network.
      inputs: normalised images [n, height, width, 3].
      outputs: int [n], the output to explain; attention rollout does not depend on it.

    Returns:
      float32 [n, rows, columns] in 0..1, the greatest of each image 1 (or all 0): a value for each position of the
      last feature map, or for each patch.
    """
    maps = _rollout(model, inputs) if hasattr(model, "attention") else _grad_cam(model, inputs, outputs)
    low, high = (reduce(maps, axis=(1, 2), keepdims=True) for reduce in (jnp.min, jnp.max))
    spread = high - low
    return jnp.where(spread > 0, (maps - low) / jnp.where(spread > 0, spread, 1), 0)


def _grad_cam(model: Any, inputs: jax.Array, outputs: jax.Array) -> jax.Array:
    """Grad-CAM (Selvaraju et al., 2017, arXiv:1610.02391) at the last feature map: [n, rows, columns]."""
    last = model.features(inputs).maps[-1].astype(jnp.float32)

    def chosen(last: jax.Array) -> jax.Array:
        logits = model.head(model.pool(last))
        return jnp.take_along_axis(logits, outputs[:, None], axis=1).sum()

    weights = jax.grad(chosen)(last).mean((1, 2), keepdims=True)
    return jax.nn.relu((weights * last).sum(-1))


def _rollout(model: Any, inputs: jax.Array) -> jax.Array:
    """Attention rollout (Abnar and Zuidema, 2020, arXiv:2005.00928), averaged over heads: [n, rows, columns].

    What the class token receives from each patch; in networks that average the patches, what these receive.
    """
    flow: Any = None
    for weights in model.attention(inputs):
        mixed = (weights.mean(1) + jnp.eye(weights.shape[-1], dtype=weights.dtype)[None]) / 2
        flow = mixed if flow is None else mixed @ flow
    variant = model.variant
    rows, columns = (side // variant.patch for side in inputs.shape[1:3])
    received = flow[:, 0] if variant.pool == "token" else flow[:, variant.prefix :].mean(1)
    return received[:, variant.prefix :].reshape(-1, rows, columns).astype(jnp.float32)


def overlay(image: np.ndarray, heat: np.ndarray) -> Image.Image:
    """Returns an image, uint8 [height, width, 3], blended with the colours of its heat map [rows, columns]."""
    height, width, _ = image.shape
    smooth = np.asarray(Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))
    colours = np.stack([np.interp(smooth, STOPS, channel) for channel in COLOURS.T], -1)
    return Image.fromarray(np.round((1 - OPACITY) * image + OPACITY * colours).astype(np.uint8))


def write_overlays(
    folder: Path, images: Sequence[tuple[Path, np.ndarray]], heat: np.ndarray, preprocess: Preprocess, done: int
) -> list[Path]:
    """Writes the part of each image that the network sees, blended with its heat map, as a PNG file.

    Args:
      folder: made if it does not exist; a file is called by its number and the name of the image.
      images: files with what `preprocess.read` returns of them.
      heat: of the images, see `heat_maps`.
      preprocess: the preprocessing of the network.
      done: number of images before them.

    Raises:
      UserError: the files cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}") from None
    files = []
    for number, ((path, square), own) in enumerate(zip(images, heat, strict=True), done + 1):
        content = io.BytesIO()
        overlay(cropped(square[None], preprocess.size, preprocess.crop_pct)[0], own).save(content, "PNG")
        files.append(folder / f"{number:05}_{path.stem}.png")
        write_bytes(files[-1], content.getvalue())
    return files
