"""Configures glibc's allocator to keep freed memory instead of returning it to the system after every step.

XLA on CPUs allocates its temporary memory at every call, and glibc returns such large blocks to the system each time,
so that every call pays for the page faults again.
"""

import ctypes
import os
import sys

SWITCH = "SFT_JAX_MALLOPT"

# From <malloc.h>: M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD.
_SETTINGS = ((-8, 1), (-4, 0), (-1, -1), (-2, 64 * 1024 * 1024))


def keep_freed_memory() -> bool:
    """Makes this process keep freed memory for reuse. Call it before jax is imported.

    The process then stays at its peak memory. Does nothing on systems without glibc, or if the environment variable
    SFT_JAX_MALLOPT is 0.

    Returns:
      whether the settings were applied.
    """
    if not sys.platform.startswith("linux") or os.environ.get(SWITCH) == "0":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and {mallopt(option, value) for option, value in _SETTINGS} == {1}
