"""Long runs: what they hold of memory and open files stays as it is, and their log grows by a line an epoch."""

import gc
import os

import jax
import numpy as np
import psutil
import pytest
from test_train import TINY, tiny  # noqa: F401  # tiny is a fixture

from sft_jax import train as train_module
from sft_jax.config import complete
from sft_jax.parallel import Devices
from sft_jax.report.console import Console
from sft_jax.reporting import Reporter
from sft_jax.runs import Run
from sft_jax.train import train

EPOCHS, STEPS, BATCH = 50, 40, 8
# Until then caches fill and the allocator finds its size.
SETTLED = 15
MIB = 2**20


@pytest.mark.slow
def test_memory_and_files_stay_flat(tmp_path, monkeypatch):
    """2,000 steps and 50 evaluations, each epoch saved."""
    process = psutil.Process()
    memory, files, arrays = [], [], []
    epoch = Reporter.epoch

    def watched(self, progress):
        epoch(self, progress)
        gc.collect()
        memory.append(process.memory_info().rss)
        files.append(process.num_fds())
        arrays.append(len(jax.live_arrays()))

    monkeypatch.setattr(Reporter, "epoch", watched)
    monkeypatch.setattr(train_module, "Devices", lambda: Devices(jax.devices()[:1]))
    config = complete(TINY | {"epochs": EPOCHS, "batch_size": BATCH, "limit_train_examples": STEPS * BATCH})
    run = Run(tmp_path / "run")
    train(config, run, resume=False, console=Console(), command=["test"])

    assert len(memory) == EPOCHS
    assert run.checkpoints.restore("latest").step == EPOCHS * STEPS
    slope = np.polyfit(np.arange(SETTLED, EPOCHS), np.array(memory[SETTLED:]) / MIB, 1)[0]
    print(f"{slope:.3f} MiB an epoch, {memory[SETTLED] / MIB:.0f} MiB; files {files[SETTLED]} to {files[-1]}")
    assert slope * (EPOCHS - SETTLED) < 40, "of about a thousand MiB"
    assert max(files[SETTLED:]) <= max(files[:SETTLED]) + 2
    assert len(set(arrays[SETTLED:])) == 1
    lines = run.log_file.read_text().splitlines()
    assert sum(" epoch " in line for line in lines) <= EPOCHS + 2
    assert len(lines) < EPOCHS + 40
    assert os.path.getsize(run.metrics_file) < EPOCHS * 500
