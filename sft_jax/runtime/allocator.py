"""Configures glibc's allocator to keep freed memory instead of returning it to the system after every step.

XLA on CPUs allocates its temporary memory at every call, and glibc returns such large blocks to the system each time,
so that every call pays for the page faults again.
"""

import ctypes
import dataclasses
import functools
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

SWITCH = "SFT_JAX_MALLOPT"

# From <malloc.h>: M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD.
_SETTINGS = ((-8, 1), (-4, 0), (-1, -1), (-2, 64 * 1024 * 1024))
# From <sys/mman.h>.
_MADV_HUGEPAGE, _HUGE_PAGE = 14, 2 << 20
_CHECK_S = 2.0


@functools.cache
def keep_freed_memory() -> bool:
    """Makes this process keep freed memory for reuse, from the first call on. Call it before jax is imported.

    The process then stays near its peak memory, see `Bound`. Does nothing without a glibc of at least 2.33 and /proc,
    or if the environment variable SFT_JAX_MALLOPT is 0.

    Returns:
      whether the settings were applied.
    """
    if not sys.platform.startswith("linux") or os.environ.get(SWITCH) == "0":
        return False
    libc = ctypes.CDLL(None)
    # musl has no mallopt, and an older glibc cannot tell how much of its memory is in use.
    if not (hasattr(libc, "mallopt") and hasattr(libc, "mallinfo2")):
        return False
    heap = Heap(libc)
    try:
        heap.resident()
    except OSError:
        return False  # there is no /proc
    if {libc.mallopt(option, value) for option, value in _SETTINGS} != {1}:
        return False
    bound = Bound(heap.resident, heap.in_use, heap.trim)
    threading.Thread(target=_watch, args=(bound,), name="allocator", daemon=True).start()
    return True


@dataclasses.dataclass
class Bound:
    """Bounds the memory that a process keeps without using it.

    A block of the size of one that was freed does not always fit into its place: glibc aligns blocks by cutting their
    ends off, and a small block that gets one of the ends is in the way of the next large one (glibc's bug 14581). The
    heap then grows by a large block; without a bound, from 4 to 18 GB in the first epoch of EfficientNet-Lite0 with
    batches of 100 images at 128 px.

    Attributes:
      resident: returns the bytes that the process has in memory, without files.
      in_use: returns the bytes of its heap that are allocated.
      trim: returns the others to the system, which costs the page faults of the next call.
      spare: bytes that it may have besides a quarter more than it ever used.
      used: the most bytes in use that were seen.
      elsewhere: the most bytes outside the heap that were seen.
    """

    resident: Callable[[], int]
    in_use: Callable[[], int]
    trim: Callable[[], object]
    spare: int = 512 << 20
    used: int = 0
    elsewhere: int = 512 << 20

    def check(self) -> None:
        """Returns free memory to the system if the process has more than it may."""
        self.used = max(self.used, self.in_use())
        if self.resident() > 1.25 * self.used + self.elsewhere + self.spare:
            self.trim()
            self.elsewhere = max(self.elsewhere, self.resident() - self.in_use())


class _Mallinfo(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )
    )  # fmt: skip


class Heap:
    """The heap of this process, as glibc and Linux know it."""

    def __init__(self, libc: ctypes.CDLL):
        self._libc = libc
        libc.mallinfo2.restype = _Mallinfo
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def resident(self) -> int:
        """See `Bound`."""
        pages = [int(number) for number in Path("/proc/self/statm").read_text().split()]
        return (pages[1] - pages[2]) * os.sysconf("SC_PAGE_SIZE")  # less those of files

    def in_use(self) -> int:
        """See `Bound`."""
        return self._libc.mallinfo2().uordblks

    def trim(self) -> None:
        """See `Bound`. What is used again gets huge pages, where the system has them: few faults instead of many."""
        self._libc.malloc_trim(0)
        for line in Path("/proc/self/maps").read_text().splitlines():
            if line.endswith("[heap]"):
                first, end = (int(address, 16) for address in line.split()[0].split("-"))
                first = -(-first // _HUGE_PAGE) * _HUGE_PAGE
                if end > first:
                    self._libc.madvise(first, end - first, _MADV_HUGEPAGE)


def _watch(bound: Bound) -> None:
    while True:
        time.sleep(_CHECK_S)
        bound.check()
