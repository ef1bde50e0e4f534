"""The best that ten minutes on two CPU cores give: ResNet-18 with ImageNet weights on CIFAR-10, at 32, then 64 pixels.

python -m sft_jax.main --config configs/cifar10_fast.py

Not measured yet.
"""

from ml_collections import ConfigDict

from sft_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """See above."""
    config = default_config()
    config.epochs = 5
    config.batch_size = 100
    config.init = "weights/resnet18.safetensors"

    config.data.source = "tfds:cifar10"
    config.data.size = 64
    config.data.size_schedule = (("32", 0.6),)
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.data.crop_padding = 4
    config.data.flip = True

    config.optimizer.learning_rate = 0.02
    config.optimizer.nesterov = True
    config.optimizer.schedule = "one_cycle"
    config.optimizer.weight_decay = 5e-4

    config.regularization.label_smoothing = 0.1
    config.regularization.ema = 0.99
    config.evaluation.flips = True
    return config
