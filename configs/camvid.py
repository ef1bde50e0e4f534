"""Semantic segmentation of street scenes, CamVid with 11 classes: EfficientNet-Lite0 with ImageNet weights, DeepLabV3.

pip install -e '.[lite0]'
python -m sft_jax.main --config configs/camvid.py --config.data.source=masks:PATH

PATH has the folders train, val and test, each with images and masks (PNG, the values 0 to 10, 11 for none), and a file
classes.txt with the 11 names.

Measured with seed 0 and jax 0.10.2 on pictures of 320 x 240 pixels, 367 / 101 / 233 as in SegNet's split: 42.4% mean
IoU and 82.9% pixel accuracy on the test pictures (at 256 px), 48.0% mean IoU on the validation ones. Road 88%, sky 84%,
but pedestrians 8%, and poles and bicyclists 0%: the last map has 16 x 16 positions. Published figures are of larger
pictures. A smaller stride (`deeplabv3_tf_efficientnet_lite0_os8`), larger pictures and class weights were not tried.
"""

from ml_collections import ConfigDict

from sft_jax.config import check_argument, default_config


def get_config(arg: str = "") -> ConfigDict:
    """SGD with a cosine schedule; the backbone keeps the statistics of its batch norm."""
    check_argument(arg)
    config = default_config()
    config.task = "segmentation"
    config.model.name = "deeplabv3_tf_efficientnet_lite0"
    config.init = "package:efficientnet-lite0"
    config.epochs = 20
    config.batch_size = 8

    config.data.source = "masks:camvid"
    config.data.ignore_index = 11
    config.data.size = 256
    config.data.fit = "squash"
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)  # as TensorFlow scales the pixels
    config.data.crop_scale = (0.4, 1.0)
    config.data.color_jitter = (0.2,)
    config.data.flip = True

    config.finetune.batch_norm = "freeze_statistics"
    config.optimizer.learning_rate = 0.02
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1.0
    return config
