"""Makes records of imaginary runs, for the tests of the report."""

import json

import jax
import numpy as np

from sft_jax.config import complete
from sft_jax.data.dataset import ArraySplit
from sft_jax.report.records import Records, Scored
from sft_jax.tasks.classification_sums import eval_sums, summarize

EVIL = "<script>alert('x')</script> & \"quoted\""


def figures_of(logits, labels):
    """Returns the evaluator's metrics for logits [n, classes]."""
    return summarize(jax.jit(eval_sums)(logits, labels, np.ones(len(labels), bool)))


def scored(classes, n=200, size=8, seed=0, names=None):
    """Returns a split of noise with logits that are correct for about half of it."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, n).astype(np.int32)
    logits = generator.normal(size=(n, classes)).astype(np.float32)
    logits[np.arange(n), labels] += 2
    images = generator.integers(0, 256, (n, size, size, 3)).astype(np.uint8)
    return Scored("test", ArraySplit.of_images(images, labels, names), figures_of(logits, labels), logits)


def records(name="flowers", epochs=3, **changes):
    rows = [
        {
            "epoch": epoch,
            "step": 5 * epoch,
            "learning_rate": 0.1,
            "train_loss": 1 / epoch,
            "train_accuracy": 1 - 0.5 / epoch,
            "val_loss": 1.1 / epoch,
            "val_accuracy": 1 - 0.6 / epoch,
            "best": 1 - 0.6 / epoch,
            "train_images_per_s": 100.0,
            "epoch_s": 2.0,
        }
        for epoch in range(1, epochs + 1)
    ]
    record = {
        "config": complete({"epochs": 3, **changes}).to_dict(),
        "versions": {"sft-jax": "0.1.0", "jax": "0.10.2"},
        "devices": "1 x cpu",
        "command": ["/somewhere/sft_jax/main.py", "--config", "my recipe.py", "--config.epochs=3"],
    }
    results = {"test_accuracy": 0.5, "test_count": 200, "test_loss": 1.5, "ece": 0.1}
    return Records(name, json.loads(json.dumps(record)), rows, results)
