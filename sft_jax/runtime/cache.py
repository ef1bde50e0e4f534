"""The user's cache folder: what was compiled or decoded once serves the next run. Anything in it may be removed."""

import hashlib
import os
import platform
from pathlib import Path

import platformdirs

SWITCH = "SFT_JAX_CACHE"
# The least recently used programs go beyond this: training and evaluation of one network are about 10 MB.
PROGRAM_BYTES = 1 << 30
# What compiles in less is not worth a file.
PROGRAM_SECONDS = 0.5


def cache_folder(name: str) -> Path | None:
    """The folder `name` below the user's cache folder, or below the one that SFT_JAX_CACHE names in the environment.

    None where that variable is empty or "0": nothing is to be kept.
    """
    chosen = os.environ.get(SWITCH)
    if chosen in ("", "0"):
        return None
    return (Path(chosen) if chosen else platformdirs.user_cache_path("sft-jax", appauthor=False)) / name


def keep_compiled_programs() -> None:
    """Makes jax keep what it compiles, so that a second run of a recipe starts at once.

    A cache folder that was chosen for jax itself (JAX_COMPILATION_CACHE_DIR) is left as it is.
    """
    import jax

    folder = cache_folder("programs")
    if folder is None or jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    jax.config.update("jax_compilation_cache_dir", str(folder / _processor()))
    jax.config.update("jax_compilation_cache_max_size", PROGRAM_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", PROGRAM_SECONDS)


def _processor() -> str:
    """Tells processors apart: machines that share a home folder must not run programs compiled for each other."""
    facts = [platform.system(), platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts += [line for line in lines if line.startswith(("flags", "Features"))][:1]
    except OSError:
        pass  # not Linux
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
