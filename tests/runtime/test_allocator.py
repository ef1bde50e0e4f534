"""Tests of the bound on the memory that the allocator keeps."""

import subprocess
import sys

import pytest

from sft_jax.runtime.allocator import Bound


class Process:
    """A process with bytes in use on its heap, bytes that are free there, and others outside it."""

    def __init__(self, used, elsewhere=0):
        self.used, self.free, self.elsewhere, self.trimmed = used, 0, elsewhere, 0
        sizes = {"spare": 100 << 20, "elsewhere": 0}
        self.bound = Bound(lambda: self.used + self.free + self.elsewhere, lambda: self.used, self.trim, **sizes)

    def trim(self):
        self.free, self.trimmed = 0, self.trimmed + 1

    def check(self, times=1):
        for _ in range(times):
            self.bound.check()
        return self.trimmed


def test_free_memory_is_returned_above_the_limit():
    process = Process(used=400 << 20)
    process.free = 200 << 20  # a quarter and 100 MiB
    assert process.check(10) == 0
    process.free += 1
    assert process.check() == 1
    assert process.free == 0


def test_what_was_in_use_before_may_be_kept():
    process = Process(used=4 << 30)
    process.check()
    process.used, process.free = 1 << 30, 4 << 30
    assert process.check(10) == 0


def test_what_is_outside_the_heap_is_not_asked_for_again_and_again():
    process = Process(used=1 << 30, elsewhere=2 << 30)
    assert process.check(10) == 1
    process.free = 1 << 30
    assert process.check(10) == 2


GROWING = """
import ctypes
from sft_jax.runtime import allocator

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
assert allocator.keep_freed_memory()
heap = allocator.Heap(libc)
blocks = []
for number in range(16):
    blocks.append(libc.malloc(32 << 20))
    ctypes.memset(blocks[-1], 1, 32 << 20)
for block in blocks[:-1]:  # the last one is above them, in the way of the end of the heap
    libc.free(block)
bound = allocator.Bound(heap.resident, heap.in_use, heap.trim, spare=100 << 20, elsewhere=0)
kept = heap.resident()
bound.check()
block = libc.malloc(400 << 20)  # in the place of those that were returned
ctypes.memset(block, 2, 400 << 20)
assert blocks[0] <= block < blocks[-1]
assert ctypes.string_at(blocks[-1], 32 << 20) == bytes([1]) * (32 << 20)
libc.free(block)
again = heap.resident()
bound.check()
print(kept >> 20, again >> 20, heap.resident() >> 20, heap.in_use() >> 20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there are no such settings elsewhere")
def test_glibc_keeps_memory_until_it_is_trimmed():
    done = subprocess.run([sys.executable, "-c", GROWING], capture_output=True, text=True, check=True)
    kept, again, left, used = map(int, done.stdout.split())
    assert kept > 16 * 32
    assert again > 432
    assert 32 <= used < 64
    assert left < 100
