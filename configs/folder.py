"""Your own images, with settings that follow from how many there are: a rule in the manner of BiT's HyperRule.

    python -m sft_jax.main --config configs/folder.py:PATH
    python -m sft_jax.main --config configs/folder.py:PATH --config.data.size=224 --config.precision=bfloat16  # GPU

PATH holds a folder of images for each class, or train/, val/ and test/ with such folders (valid/, Training/, dev/ and
their like are understood). BiT (Kolesnikov et al., 2020,
arXiv:1912.11370) fixes the number of updates by the size of the training set and uses mixup only where there are many
images; so does this, with fewer updates of smaller batches, as a laptop can do them.

Seen on 500 images of CIFAR-10 as PNG files (50 a class; 20 a class to choose the epoch), with the weights that the
README's results describe, seeds 0, 1 and 2: 61.1, 60.4 and 59.6 % of 1,000 test images, eight to ten minutes each on
two busy CPU cores. Larger folders, whose settings are others, were not run.
"""

from pathlib import Path

from ml_collections import ConfigDict

from sft_jax.config import default_config
from sft_jax.data.sources.folder import list_folder
from sft_jax.data.sources.parts import decided
from sft_jax.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Training images up to -> (images seen, batch size, alpha of mixup).
RULE = {1_000: (20_000, 32, 0.0), 20_000: (100_000, 64, 0.0), 500_000: (1_000_000, 128, 0.1)}
LARGEST = (5_000_000, 256, 0.1)


def get_config(arg: str = "") -> ConfigDict:
    """`arg` is the folder."""
    if not Path(arg).is_dir() or not arg:
        raise UserError(f"configs/folder.py:PATH wants a folder of images; there is no folder {arg!r}")
    images = count(Path(arg))
    seen, batch_size, mixup = next((rule for limit, rule in RULE.items() if images <= limit), LARGEST)

    config = default_config()
    config.init = "weights/resnet18.safetensors"
    config.batch_size = max(8, min(batch_size, images // 4 // 8 * 8))
    config.epochs = max(3, round(seen / max(images, 1)))

    config.data.source = f"folder:{arg}"
    config.data.size = 128
    config.data.mean, config.data.std = IMAGENET_MEAN, IMAGENET_STD
    config.data.crop_padding = 16
    config.data.flip = True

    # BiT: 0.003 for a batch of 512 images.
    config.optimizer.learning_rate = 0.01
    config.optimizer.nesterov = True
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.weight_decay = 1e-4
    config.regularization.label_smoothing = 0.1
    config.regularization.mixup = mixup
    return config


def count(folder: Path) -> int:
    """Training images."""
    return len(decided(list_folder(folder, []), [])["train"])
