"""ResNet-50 with ImageNet weights on CIFAR-10 at 224 x 224 pixels, for an accelerator.

    python convert/resnet_to_flax.py --arch resnet50 --weights IMAGENET1K_V2 --output weights/resnet50.safetensors
    python -m sft_jax.main --config configs/cifar10_best.py

Not run: it needs a GPU or TPU (a CPU would take days). The settings are those with which BiT and timm fine-tune
networks of this size: bfloat16, a large batch, a cosine after a warm-up, mixup and label smoothing, averaged weights.
"""

from ml_collections import ConfigDict

from sft_jax.config import check_argument, default_config


def get_config(arg: str = "") -> ConfigDict:
    """See above."""
    check_argument(arg)
    config = default_config()
    config.epochs = 20
    config.batch_size = 256
    config.precision = "bfloat16"
    config.model.name = "resnet50"
    config.init = "weights/resnet50.safetensors"

    config.data.source = "tfds:cifar10"
    config.data.size = 224
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.data.crop_padding = 28
    config.data.flip = True
    config.data.auto_augment = "trivial"

    config.optimizer.learning_rate = 0.02
    config.optimizer.reference_batch = 256
    config.optimizer.nesterov = True
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.weight_decay = 1e-4

    config.regularization.label_smoothing = 0.1
    config.regularization.mixup = 0.2
    config.regularization.ema = 0.9998
    config.evaluation.flips = True
    return config
