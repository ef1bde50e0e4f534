"""Configures glibc's allocator to keep freed memory instead of returning it to the system after every step.

XLA on CPUs allocates its temporary memory at every call, and glibc returns such large blocks to the system each time,
so that every call pays for the page faults again.
"""

import ctypes
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

SWITCH = "SFT_JAX_MALLOPT"

# From <malloc.h>: M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD.
_SETTINGS = ((-8, 1), (-4, 0), (-1, -1), (-2, 64 * 1024 * 1024))
_STATM = Path("/proc/self/statm")


def keep_freed_memory() -> bool:
    """Makes this process keep freed memory for reuse. Call it before jax is imported.

    The process then stays near its peak memory, see `Bound`. Does nothing on systems without glibc, or if the
    environment variable SFT_JAX_MALLOPT is 0.

    Returns:
      whether the settings were applied.
    """
    if not sys.platform.startswith("linux") or os.environ.get(SWITCH) == "0":
        return False
    libc = ctypes.CDLL(None)
    mallopt = getattr(libc, "mallopt", None)  # musl has none
    if mallopt is None or {mallopt(option, value) for option, value in _SETTINGS} != {1}:
        return False
    bound = Bound(_resident, lambda: libc.malloc_trim(0))
    threading.Thread(target=_watch, args=(bound,), name="allocator", daemon=True).start()
    return True


@dataclasses.dataclass
class Bound:
    """Bounds the memory that a process keeps without using it.

    A block of the size of one that was freed does not always fit into its place: glibc aligns blocks by cutting their
    ends off, and a small block that gets one of the ends is in the way of the next large one (glibc's bug 14581). The
    heap then grows by a large block; without a bound, from 4 to 18 GB in the first epoch of EfficientNet-Lite0 with
    batches of 100 images at 128 px. Returning everything that is free costs the page faults of one call.

    Attributes:
      resident: returns the bytes that the process has in memory, without files.
      trim: returns what is free to the system.
      limit: bytes above which it does so.
      settle: number of checks after it, until what is then resident is what the process needs.
    """

    resident: Callable[[], int]
    trim: Callable[[], object]
    limit: float = 2 << 30
    settle: int = 5
    _waiting: int = 0

    def check(self) -> None:
        """Returns free memory if the process has more than `limit`, and then sets this anew, from what is needed."""
        if self._waiting:
            self._waiting -= 1
            if not self._waiting:
                self.limit = max(self.limit, 1.25 * self.resident() + (1 << 28))
        elif self.resident() > self.limit:
            self.trim()
            self._waiting = self.settle


def _resident() -> int:
    pages = [int(number) for number in _STATM.read_text().split()]
    return (pages[1] - pages[2]) * os.sysconf("SC_PAGE_SIZE")  # less those of files


def _watch(bound: Bound) -> None:
    while True:
        time.sleep(2)
        bound.check()
