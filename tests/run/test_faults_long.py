"""Tests that memory and open files of long runs stay constant, and that their log grows by a line per epoch."""

import ctypes
import gc
import os

import jax
import numpy as np
import psutil
import pytest
from tiny_runs import TINY

from sft_jax.config import complete
from sft_jax.report.reporter import Reporter
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.runtime.devices import Devices
from sft_jax.training import trainer as train_module
from sft_jax.training.trainer import train

EPOCHS, STEPS, BATCH = 50, 40, 8
# The first epochs, in which caches fill up and the allocator settles.
SETTLED = 15
MIB = 2**20
MALLINFO = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class Mallinfo(ctypes.Structure):
    """From <malloc.h>."""

    _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO.split()]


@pytest.fixture
def in_use():
    """Returns the bytes that this process has allocated and not freed, including XLA's arrays."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        pytest.skip("needs glibc 2.33")
    mallinfo2.restype = Mallinfo

    def measured():
        info = mallinfo2()
        return info.uordblks + info.hblkhd

    return measured


def slope(sizes):
    """Returns the growth in MiB per epoch, once settled."""
    return np.polyfit(np.arange(SETTLED, EPOCHS), np.array(sizes[SETTLED:]) / MIB, 1)[0]


@pytest.mark.slow
def test_memory_and_open_files_stay_constant(tmp_path, monkeypatch, in_use):
    """Runs 2,000 steps and 50 evaluations, and saves every epoch."""
    process = psutil.Process()
    memory, held, files, arrays = [], [], [], []
    epoch = Reporter.epoch

    def watched(self, progress):
        epoch(self, progress)
        gc.collect()
        memory.append(process.memory_info().rss)
        held.append(in_use())
        files.append(process.num_fds())
        arrays.append(len(jax.live_arrays()))

    monkeypatch.setattr(Reporter, "epoch", watched)
    monkeypatch.setattr(train_module, "Devices", lambda: Devices(jax.devices()[:1]))
    config = complete(TINY | {"epochs": EPOCHS, "batch_size": BATCH, "limit_train_examples": STEPS * BATCH})
    run = Run(tmp_path / "run")
    train(config, run, resume=False, console=Console(), command=["test"])

    assert len(memory) == EPOCHS
    assert run.checkpoints.restore("latest").step == EPOCHS * STEPS
    print(
        f"{slope(held):.3f} MiB per epoch, in use {held[SETTLED] / MIB:.0f} MiB; files {files[SETTLED]} to {files[-1]}"
    )
    print(f"{slope(memory):.3f} MiB per epoch, resident {memory[SETTLED] / MIB:.0f} MiB")
    assert slope(held) * (EPOCHS - SETTLED) < 10
    # The threads that write checkpoints fragment the heap, by tens of MiB that differ from save to save.
    assert slope(memory) * (EPOCHS - SETTLED) < 80, "of about a thousand MiB"
    assert max(files[SETTLED:]) <= max(files[:SETTLED]) + 2
    assert len(set(arrays[SETTLED:])) == 1
    lines = run.log_file.read_text().splitlines()
    assert sum(" epoch " in line for line in lines) <= EPOCHS + 2
    assert len(lines) < EPOCHS + 40
    assert os.path.getsize(run.metrics_file) < EPOCHS * 500
