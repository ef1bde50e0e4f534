"""Tests of the bound on the memory that the allocator keeps."""

import subprocess
import sys

import pytest

from sft_jax.runtime.allocator import Bound


class Process:
    """A process whose heap has `needed` bytes in use, and others that are free."""

    def __init__(self, needed):
        self.needed, self.free, self.trimmed = needed, 0, 0
        self.bound = Bound(lambda: self.needed + self.free, self.trim, limit=1 << 30, settle=2)

    def trim(self):
        self.free, self.trimmed = 0, self.trimmed + 1

    def check(self, times=1):
        for _ in range(times):
            self.bound.check()
        return self.trimmed


def test_free_memory_is_returned_above_the_limit():
    process = Process(needed=600 << 20)
    assert process.check(10) == 0
    process.free = 500 << 20
    assert process.check() == 1
    assert process.free == 0


def test_the_limit_follows_what_is_needed():
    process = Process(needed=4 << 30)
    assert process.check(10) == 1, "what is in use cannot be returned, again and again"
    assert process.bound.limit == (5 << 30) + (1 << 28)
    process.free = 1 << 30
    assert process.check(10) == 1
    process.free = 2 << 30
    assert process.check(10) == 2


GROWING = """
import ctypes, time
from sft_jax.runtime import allocator

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
assert allocator.keep_freed_memory()
before = allocator._resident()
for turn in range(8):  # each block is a page larger than the last one, which another one keeps apart
    block = libc.malloc((64 << 20) + (turn << 12))
    ctypes.memset(block, 1, 64 << 20)
    libc.malloc(1 << 20)
    libc.free(block)
kept = allocator._resident() - before
bound = allocator.Bound(allocator._resident, lambda: libc.malloc_trim(0), limit=before + (100 << 20))
bound.check()
print(kept >> 20, allocator._resident() - before >> 20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there are no such settings elsewhere")
def test_glibc_keeps_memory_until_it_is_trimmed():
    done = subprocess.run([sys.executable, "-c", GROWING], capture_output=True, text=True, check=True)
    kept, left = map(int, done.stdout.split())
    assert kept > 400
    assert left < 32
