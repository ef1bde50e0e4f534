"""Strict settings for all tests: 8 virtual CPU devices, no implicit rank or dtype promotion."""

import ctypes
import gc
import os
import sys
from pathlib import Path

from children import CACHE, xla_flags

# Before jax is imported: the number of CPU devices is fixed when its backend starts.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(devices=8)}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Before torch is imported: its threads spin while they wait for a core that another test process uses.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test reads or leaves anything in the user's cache folder.
os.environ["SFT_JAX_CACHE"] = "0"

import jax
import psutil
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The longest files start first, so that no worker of pytest-xdist is left with one at the end.
LONGEST = (
    "test_processes.py",
    "test_ops.py",
    "test_methods.py",
    "test_installed.py",
    "test_convert.py",
    "test_efficientnet.py",
    "test_benchmark.py",
    "test_train.py",
    "test_lr_find.py",
    "test_search.py",
    "test_search_at_once.py",
    "test_kill.py",
    "test_evaluate_others.py",
    "test_devices.py",
)


def pytest_configure(config):
    """Makes pytest-xdist hand out whole files in the order of collection."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Moves the files of `LONGEST` to the start."""
    place = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Shares compiled programs between runs, workers of pytest-xdist and processes that tests start."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    jax.config.update("jax_compilation_cache_dir", str(shared / "programs"))
    for name, value in CACHE.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session", autouse=True)
def tiny():
    """Registers the network "tiny" for recipes in tests."""
    # Imported here, after pytest has applied its settings, such as warnings being errors.
    from tiny_runs import TINY_VARIANT

    from sft_jax.models import ARCHITECTURES
    from sft_jax.models.resnet import architecture

    ARCHITECTURES["tiny"] = architecture("tiny", TINY_VARIANT)


@pytest.fixture(scope="session")
def whole(tmp_path_factory, compiled_once, tiny):
    """The folder and results of an uninterrupted run of `TINY` on all devices; it must not be modified."""
    from tiny_runs import run

    from sft_jax.runtime.devices import Devices
    from sft_jax.training import trainer

    folder = tmp_path_factory.mktemp("runs") / "whole"
    # The module of the first test that asks for it may have chosen other devices.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "Devices", Devices)
        return folder, run(folder, observed=True)


# Linux limits a process to 65,530 memory mappings, and each compiled program takes dozens.
MAPPINGS = 25_000
# Resident memory above which programs are dropped, and by how much a process may grow until it drops them again: what
# the tests import stays, and grows with every package (torch with CUDA, tensorflow, transformers).
MEMORY, GROWTH = 1_500 << 20, 300 << 20


@pytest.fixture(scope="module", autouse=True)
def within_mappings():
    """Keeps compiled programs for the next test files up to a limit on memory mappings."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and len(mappings.read_bytes().splitlines()) > MAPPINGS:
        forget_programs()


@pytest.fixture(scope="session")
def memory_limit():
    """The resident memory above which the next test drops programs, as the only item of a list."""
    return [MEMORY]


@pytest.fixture(autouse=True)
def within_memory(memory_limit):
    """Keeps compiled programs for the next tests up to a limit on memory."""
    yield
    if resident() > memory_limit[0]:
        forget_programs()
        memory_limit[0] = max(MEMORY, resident() + GROWTH)


def resident():
    return psutil.Process().memory_info().rss


def forget_programs():
    """Drops compiled programs and returns their memory to the system; the C library would keep it."""
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
