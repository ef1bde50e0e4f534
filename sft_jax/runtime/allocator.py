"""glibc's memory allocator, told to keep what it has instead of giving it back to the system after every step.

XLA on a CPU allocates its temporary memory anew at every call, and glibc returns such large blocks to the system each
time, so that every call pays the page faults again.
"""

import ctypes
import os
import sys

SWITCH = "SFT_JAX_MALLOPT"

# From <malloc.h>: M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD.
_SETTINGS = ((-8, 1), (-4, 0), (-1, -1), (-2, 64 * 1024 * 1024))


def keep_freed_memory() -> bool:
    """Makes this process keep freed memory for reuse; to be called before jax is imported.

    The process then stays at its peak memory. Does nothing on systems without glibc, and where the environment variable
    SFT_JAX_MALLOPT is 0.

    Returns:
      whether the settings were made.
    """
    if not sys.platform.startswith("linux") or os.environ.get(SWITCH) == "0":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and {mallopt(option, value) for option, value in _SETTINGS} == {1}
