"""The user's cache folder, with compiled programs and decoded images for later runs. It may be deleted at any time."""

import hashlib
import os
import platform
from pathlib import Path

import platformdirs

SWITCH = "SFT_JAX_CACHE"
# Size above which the least recently used programs are evicted; one network's training and evaluation take about 10 MB.
PROGRAM_BYTES = 1 << 30
# Programs that compile faster are not cached.
PROGRAM_SECONDS = 0.5


def cache_folder(name: str) -> Path | None:
    """Returns the subfolder `name` of the user's cache folder, or of the environment variable SFT_JAX_CACHE.

    None if that variable is empty or "0", which disables caching.
    """
    chosen = os.environ.get(SWITCH)
    if chosen in ("", "0"):
        return None
    return (Path(chosen) if chosen else platformdirs.user_cache_path("sft-jax", appauthor=False)) / name


def keep_compiled_programs() -> None:
    """Enables jax's persistent compilation cache, so that a second run of a recipe starts at once.

    Does nothing if a cache folder is already set for jax (JAX_COMPILATION_CACHE_DIR).
    """
    import jax

    folder = cache_folder("programs")
    if folder is None or jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    jax.config.update("jax_compilation_cache_dir", str(folder / _processor()))
    jax.config.update("jax_compilation_cache_max_size", PROGRAM_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", PROGRAM_SECONDS)


def keeps_programs() -> bool:
    """Returns whether jax keeps compiled programs, so that another process, or a later call, need not compile them."""
    import jax

    return jax.config.jax_compilation_cache_dir is not None  # type: ignore[attr-defined]


def _processor() -> str:
    """Identifies the processor, because machines with a shared home folder must not share compiled programs."""
    facts = [platform.system(), platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts += [line for line in lines if line.startswith(("flags", "Features"))][:1]
    except OSError:
        pass  # not Linux
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
