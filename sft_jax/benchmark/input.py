"""Compares input pipelines: images a second from a folder of JPEG files to augmented batches."""

import contextlib
import importlib.util
import os
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sft_jax.benchmark.turns import Side
from sft_jax.data.images.files import find_images
from sft_jax.errors import UserError
from sft_jax.runtime.cache import SWITCH

# What is made if no folder is given: files like ImageNet's.
COUNT, CLASSES, WIDTH, HEIGHT, QUALITY = 2000, 10, 500, 375, 90
# Pixels at which sft-jax keeps images, relative to the network's: 256 for 224.
KEPT = 256 / 224


def make_folder(folder: Path) -> None:
    """Writes a folder of classes of JPEG files with detail at all scales, as photographs have it."""
    random = np.random.default_rng(0)
    scene = np.zeros((2 * HEIGHT, 2 * WIDTH, 3), np.float32)
    for scale in (2, 4, 8, 16, 32, 64):
        small = random.uniform(0, 255, (2 * HEIGHT // scale, 2 * WIDTH // scale, 3)).astype(np.uint8)
        layer = Image.fromarray(small).resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.BICUBIC)
        scene += np.sqrt(scale) * (np.asarray(layer, np.float32) - 128)
    scene = np.clip(128 + 60 * scene / scene.std(), 0, 255)
    for number in range(COUNT):
        top, left = random.integers(0, (HEIGHT, WIDTH))
        image = Image.fromarray(scene[top : top + HEIGHT, left : left + WIDTH].astype(np.uint8))
        path = folder / f"class{number % CLASSES}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=QUALITY)


def measure(folder: Path | None, *, size: int, batch: int, rounds: int) -> dict[str, Any]:
    """Times first and later epochs of both sides in turns.

    Args:
      folder: one folder of images per class; None to make one.
      size: pixels of the augmented images.
      batch: images per batch.
      rounds: first epochs of each side; each is followed by two later ones.

    Returns:
      images a second by side and epoch, e.g. "first_images_per_s" and "torch_later_images_per_s", and their ratios.

    Raises:
      UserError: PyTorch is not installed, or there are no images.
    """
    if not (importlib.util.find_spec("torch") and importlib.util.find_spec("torchvision")):
        raise UserError("--input compares with torchvision: pip install torch torchvision")
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(temporary, "images")
            make_folder(folder)
        count = len(find_images(folder).images)
        if count < batch:
            raise UserError(f"--input {folder} has {count} images, fewer than a batch of {batch}")
        arguments = [str(folder), str(size), str(batch)]
        # The first epoch of a run finds nothing in the cache.
        environment = {SWITCH: str(Path(temporary, "cache"))}
        sides = {
            "": stack.enter_context(Side("input_jax", arguments, environment)),
            "torch_": stack.enter_context(Side("torch_input", arguments, {})),
        }
        for task, repeats in (("first", 1), ("later", 2)):
            for side in sides.values():
                side.turn(task, repeats, keep=False)
        for _ in range(rounds):
            for task, repeats in (("first", 1), ("later", 2)):
                for side in sides.values():
                    side.turn(task, repeats)
        return _figures(sides, count)


def _figures(sides: Mapping[str, Side], count: int) -> dict[str, Any]:
    values: dict[str, Any] = {"images": count, "cores": os.cpu_count()}
    for prefix, side in sides.items():
        for task, times in side.times.items():
            values[f"{prefix}{task}_images_per_s"] = 1e3 * count / statistics.median(times)
    for task in ("first", "later"):
        ratio = values[f"{task}_images_per_s"] / values[f"torch_{task}_images_per_s"]
        values[f"{task}_speedup_vs_torch"] = ratio
    return values


def lines(values: Mapping[str, Any]) -> list[str]:
    """Describes the figures that `measure` returns."""
    return [
        f"{values['images']:,} images, {values['cores']} cores",
        *(
            f"{name}: {values[f'{task}_images_per_s']:,.0f} images/s, torchvision "
            f"{values[f'torch_{task}_images_per_s']:,.0f}: {values[f'{task}_speedup_vs_torch']:.2f} x as fast"
            for task, name in (("first", "first epoch"), ("later", "later epochs"))
        ),
    ]
