"""ResNet-18 with ImageNet weights on CIFAR-100 at 64 x 64 pixels.

python -m sft_jax.main --config configs/cifar100.py

Not run: CIFAR-100 was not at hand. The recipe is that of configs/cifar10_fast.py with more epochs.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """See above."""
    config = runpy.run_path(str(Path(__file__).with_name("cifar10_fast.py")))["get_config"](arg)
    config.epochs = 15
    config.data.source = "tfds:cifar100"
    config.data.size_schedule = (("32", 0.3),)
    return config
