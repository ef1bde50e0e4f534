"""ResNet-18 with ImageNet weights, all of it fine-tuned on CIFAR-10 at 32 x 32 pixels: the plain recipe.

python convert/resnet_to_flax.py --output weights/resnet18.safetensors
python -m sft_jax.main --config configs/cifar10.py

Seen on two CPU cores, with all 50,000 training images and the weights that the README's results describe: 58.9, 67.7,
72.2, 74.4 and 76.2 % of the test images after the first five epochs, one run, half a minute an epoch (PyTorch: 58.6,
68.3, 71.3, 74.3 and 76.0 %). All 100 epochs have not been run.
"""

from ml_collections import ConfigDict

from sft_jax.config import check_argument, default_config


def get_config(arg: str = "") -> ConfigDict:
    """SGD with momentum at a constant learning rate; 5,000 training images are held out to choose the best epoch."""
    check_argument(arg)
    config = default_config()
    config.epochs = 100
    config.batch_size = 100
    config.init = "weights/resnet18.safetensors"

    config.data.source = "tfds:cifar10"
    config.data.train = "train[:45000]"
    config.data.validation = "train[45000:]"
    config.data.test = "test"
    config.data.size = 32
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)
    config.data.crop_padding = 4
    config.data.flip = True

    config.optimizer.learning_rate = 1e-3
    config.optimizer.momentum = 0.9
    return config
