"""Semantic segmentation of street scenes, CamVid with 11 classes: EfficientNet-Lite0, ImageNet weights, SegFormer head.

pip install -e '.[lite0]'
python -m sft_jax.main --config configs/camvid.py --config.data.source=masks:PATH

PATH has the folders train, val and test, each with images and masks (PNG, the values 0 to 10, 11 for none), and a file
classes.txt with the 11 names.

Measured with jax 0.10.2 on pictures of 320 x 240 pixels, 367 / 101 / 233 as in SegNet's split, on two CPU cores without
AVX-512: 52.9, 52.9, 53.7% mean IoU and 87.8, 87.8, 88.2% pixel accuracy on the test pictures (at 256 px, seeds 0 to 2),
8 minutes for seed 1, alone. Road 91%, sky 89%, car 76%, but pedestrians 28%, bicyclists 28% and poles 7%. Published
figures are of larger pictures. With `deeplabv3_tf_efficientnet_lite0`, whose last map has 16 x 16 positions, 20 epochs
of SGD with a rate of 0.02 gave 42.4% (seed 0), with this head 12 such epochs 49.3%. Larger pictures, more epochs and
class weights were not tried. `evaluate --data masks:PATH --split test --windows 0` has 54.8% on the pictures' own
pixels (seed 0) instead of 52.9%, with `--flips` 54.9%.
"""

from ml_collections import ConfigDict

from sft_jax.config import check_argument, default_config


def get_config(arg: str = "") -> ConfigDict:
    """AdamW with a cosine schedule; the backbone keeps the statistics of its batch norm."""
    check_argument(arg)
    config = default_config()
    config.task = "segmentation"
    config.model.name = "segformer_tf_efficientnet_lite0"
    config.init = "package:efficientnet-lite0"
    config.epochs = 12
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
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.weight_decay = 0.01
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1.0
    return config
