"""The settings that follow from the data and the weights, each with its reason."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sft_jax.errors import UserError
from sft_jax.fit.sight import Sight
from sft_jax.fit.weights import Candidate
from sft_jax.models import Architecture
from sft_jax.tasks.classification import Classification
from sft_jax.tasks.multilabel import Multilabel

# Part of an image that a centre crop may cut off on average: a photograph of 4:3 loses a quarter. Of several labels,
# some may belong to what is cut off.
CROPPED, CROPPED_OF_SEVERAL = 0.3, 0.05
# With fewer training images per class than this, only the head is trained (README, Transfer methods: with 10, nothing
# was better).
FEW_PER_CLASS = 20
# Training images up to -> batch size.
BATCHES = {20_000: 32, 500_000: 64}
LARGEST_BATCH = 128
# Epochs of the whole network: with 3, the fewest that were tried, fine-tuning was better than its fitted head
# (configs/flowers.py; after the first of them it was worse); the most that the README's runs had.
FEWEST, MOST = 3, 30
# Epochs of the head alone if nothing else is trained: it is already fitted.
HEAD_EPOCHS = 3
# Sides of a network's input in pixels: the smallest, and the steps between them.
SMALLEST, STEP = 64, 8
# Images are enlarged to at most this many times their own side: for photographs of 128 px the head's accuracy, fitted
# to 1,000 of them, was 68.6% at 96 px, 71.3% at 128, 72.9% at 160, 73.2% at 192 and 74.1% at 224, on 436 others.
ENLARGED = 1.75


class Choices:
    """Settings by topic, with reasons; settings that the user gave are kept."""

    def __init__(self, given: Mapping[str, Any]):
        self._given, self._chosen = dict(given), dict[str, dict[str, Any]]()
        self._why: dict[str, str] = {}

    @property
    def values(self) -> dict[str, Any]:
        """All settings by config key."""
        return {key: value for part in self._chosen.values() for key, value in part.items()} | self._given

    @property
    def lines(self) -> list[tuple[str, str]]:
        """What was chosen and why: (topic, text) pairs."""
        return [(topic, why) for topic, why in self._why.items() if why]

    def set(self, topic: str, why: str, settings: Mapping[str, Any]) -> None:
        """Chooses `settings` in place of what was chosen for `topic` before; without a reason there is no line."""
        kept = [f"{key}={self._given[key]} as you say" for key in settings if key in self._given]
        self._chosen[topic], self._why[topic] = dict(settings), "; ".join(filter(None, [why, *kept]))

    def gives(self, key: str) -> bool:
        """Returns whether the user gave the setting."""
        return key in self._given


def choose_fit(choices: Choices, sight: Sight, task: type) -> None:
    """Chooses how images become square, from their shapes."""
    lost = float((1 - sight.sides.min(1) / sight.sides.max(1)).mean())
    if lost <= (CROPPED_OF_SEVERAL if task is Multilabel else CROPPED):
        fit, why = "crop", f"centre crops cut off {lost:.0%} of an image on average"
    else:
        fit, why = "pad", f"padded with black, because centre crops would cut off {lost:.0%} of an image on average"
    choices.set("images", why, {"data.fit": fit})


def choose_weights(choices: Choices, candidate: Candidate, why: str) -> None:
    """Chooses the network, its weights and the preprocessing that they were trained with."""
    known = candidate.preprocess
    settings = {
        "init": candidate.init,
        "model.name": candidate.arch,
        "model.stem": candidate.stem,
        "data.mean": known.mean,
        "data.std": known.std,
        "data.interpolation": known.interpolation,
    }
    choices.set("weights", f"{candidate}: {why}", settings)


def choose_size(choices: Choices, size: int, why: str) -> None:
    """Chooses the image size, and random crops in proportion to it."""
    choices.set("size", f"{size} px: {why}", {"data.size": size, "data.crop_padding": size // 8})


def choose_batch(choices: Choices, sight: Sight, devices: int) -> None:
    """Chooses the batch size, a multiple of the number of devices, and the learning rate that goes with it."""
    images = sight.counts["train"]
    usual = next((batch for limit, batch in BATCHES.items() if images <= limit), LARGEST_BATCH)
    # At least four steps in an epoch.
    batch = max(devices, min(usual, images // 4) // devices * devices)
    choices.set("batch", f"{batch} images, for {images:,} training images", {"batch_size": batch})


def choose_optimizer(choices: Choices, task: type) -> None:
    """Chooses the optimizer of configs/flowers.py."""
    settings: dict[str, Any] = {
        "optimizer.nesterov": True,
        "optimizer.schedule": "cosine",
        "optimizer.warmup_epochs": 1.0,
    }
    if task is Classification:
        settings["regularization.label_smoothing"] = 0.1
    choices.set("optimizer", "SGD with momentum, a cosine schedule and a warm-up, as in configs/flowers.py", settings)


def choose_method(choices: Choices, epochs: int, why: str, *, scratch: bool) -> None:
    """Chooses what is trained: the head, then everything for `epochs` epochs; all from the start if from `scratch`."""
    if scratch:
        what = f"everything, from random weights, {epochs} epochs"
        settings = {"finetune.method": "full", "epochs": epochs, "optimizer.learning_rate": 0.02}
    elif not epochs:
        what = "the head alone, fitted to the features (linear probe)"
        settings = {"finetune.method": "head", "epochs": HEAD_EPOCHS, "optimizer.learning_rate": 0.001}
    else:
        what = f"a fitted head, then everything for {epochs} epochs (LP-FT), batch norm with frozen statistics"
        settings = {
            "finetune.method": "head_then_full",
            "finetune.head_epochs": 1,
            "finetune.batch_norm": "freeze_statistics",
            "epochs": 1 + epochs,
            "optimizer.learning_rate": 0.001,
        }
    choices.set("method", f"{what}: {why}", settings)


def few_per_class(sight: Sight) -> int | None:
    """Returns the median number of training images per class if that is too small to train more than the head."""
    if sight.classes is None:
        return None
    usual = int(np.median(list(sight.classes.values())))
    return usual if usual < FEW_PER_CLASS else None


def sizes_for(architecture: Architecture, usual: int, sight: Sight) -> list[int]:
    """Returns the image sizes to choose from, the largest first.

    Args:
      architecture: the network, which may not take every size.
      usual: the size that the weights were trained for.
      sight: of the data.
    """
    largest = min(usual, int(ENLARGED * np.median(sight.sides.min(1))))
    sizes = [usual] if usual <= largest else []
    sizes += range(min(usual - 1, max(largest, SMALLEST)) // STEP * STEP, SMALLEST - 1, -STEP)
    return [size for size in sizes if _takes(architecture, size)] or [usual]


def _takes(architecture: Architecture, size: int) -> bool:
    try:
        architecture.check_size(size)
    except UserError:
        return False
    return True
