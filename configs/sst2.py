"""SST-2, sentences of film reviews, with MiniLM from a package: text classification in a few minutes on a CPU.

    python -m sft_jax.main --config configs/sst2.py --config.data.source=text:FOLDER

FOLDER has train.tsv, dev.tsv and test.tsv with a sentence and 0 or 1 a line (https://github.com/clairett/pytorch-sentiment-classification
holds them, or GLUE's with their header).
"""

from ml_collections import ConfigDict

from sft_jax.config import check_argument, default_config


def get_config(arg: str = "") -> ConfigDict:
    """Returns the configuration."""
    check_argument(arg)
    config = default_config()
    config.task = "text"
    config.model.name = "all_minilm_l6_v2"
    config.init = "package:all-minilm-l6-v2"
    config.data.source = "text:data/sst2"
    config.text.length = 128
    config.epochs = 3
    config.batch_size = 32
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.01
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_epochs = 0.2
    return config
