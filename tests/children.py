"""Processes that tests start, and their environment: fast compilation, and the tests' cache of compiled programs."""

import importlib.metadata
import json
import os
import subprocess
import sys
from typing import Any

# Nearly all time is compilation. LLVM's -O0 takes a third less than -O1, and without the emitters of fusions, which
# later releases always use, it takes a quarter (jaxlib 0.10.2). The programs are as exact; few tests run longer.
COMPILE_FAST = "--xla_backend_optimization_level=0"
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    COMPILE_FAST += " --xla_cpu_use_fusion_emitters=false"
# JAX's cache of compiled programs. Only with a size limit does JAX lock it for reading and writing, which processes
# that share it need.
CACHE = {"jax_compilation_cache_max_size": 8 << 30, "jax_persistent_cache_min_compile_time_secs": 0.2}


def xla_flags(devices: int) -> str:
    """Returns XLA_FLAGS for a number of CPU devices."""
    return f"{COMPILE_FAST} --xla_force_host_platform_device_count={devices}"


def environment(*, devices: int = 1, **changes: str) -> dict[str, str]:
    """Returns the environment of a process with a number of CPU devices, and with `changes`."""
    import jax  # conftest.py imports this module before JAX_PLATFORMS is set

    cache = CACHE | {"jax_compilation_cache_dir": jax.config.jax_compilation_cache_dir}
    settings = {name.upper(): str(value) for name, value in cache.items()}
    return os.environ | settings | {"XLA_FLAGS": xla_flags(devices)} | changes


def json_of(module: str, *flags: str) -> Any:
    """Runs a command of the package to its end, and returns the JSON that it prints."""
    command = [sys.executable, "-m", module, *flags]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
