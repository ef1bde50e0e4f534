"""Tests of the caches between runs: they are reused, bounded in size and verified."""

import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from sft_jax.data.sources import cache as split_cache
from sft_jax.data.sources.cache import cached, source_digest
from sft_jax.runtime import cache


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "splits"


def split_of(value, count=4):
    return {"images": np.full((count, 8, 8, 3), value, np.uint8), "labels": np.arange(count, dtype=np.int32)}


class Reader:
    """Returns a split and counts how often it is read."""

    def __init__(self, split):
        self.split, self.times = split, 0

    def __call__(self):
        self.times += 1
        return self.split


def assert_same(actual, wanted):
    assert actual.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(actual[name], array, strict=True)


def test_a_split_is_decoded_once(folder):
    reader = Reader(split_of(7))
    for _ in range(3):
        assert_same(cached(("source", "train"), reader), reader.split)
    assert reader.times == 1
    other = Reader(split_of(8))
    for key in (("source", "test"), ("other source", "train"), ("source", "train", "")):
        assert_same(cached(key, other), other.split)
    assert other.times == 3
    assert len(list(folder.iterdir())) == 4


DAMAGE = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-1],
    "flipped": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "no header": lambda data: b"x" * len(data),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_replaced(folder, damage):
    reader = Reader(split_of(7))
    cached(("key",), reader)
    (file,) = folder.iterdir()
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    for _ in range(2):
        assert_same(cached(("key",), reader), reader.split)
    assert reader.times == 2


def test_a_folder_that_cannot_be_written_does_not_fail_the_run(folder, tmp_path):
    (tmp_path / "cache").write_text("a file in the way")
    reader = Reader(split_of(7))
    for _ in range(2):
        assert_same(cached(("key",), reader), reader.split)
    assert reader.times == 2


def test_a_full_disk_leaves_no_file(folder, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert_same(cached(("key",), Reader(split_of(7))), split_of(7))
    assert list(folder.iterdir()) == []


def test_a_disk_that_fills_up_does_not_fail_the_run(folder):
    """A limit on file sizes makes the write fail half-way, for which safetensors has its own error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        assert_same(cached(("key",), Reader(split_of(7))), split_of(7))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(folder.iterdir()) == []


def test_the_least_recently_used_splits_are_deleted_first(folder, monkeypatch):
    def size():
        return max(file.stat().st_size for file in folder.iterdir())

    readers = [Reader(split_of(value, 100)) for value in range(3)]
    for number, reader in enumerate(readers):
        cached((str(number),), reader)
        for file in folder.iterdir():  # file systems have coarse clocks
            os.utime(file, (file.stat().st_mtime - 10,) * 2)
        if number == 0:
            monkeypatch.setattr(split_cache, "TOTAL_BYTES", int(2.5 * size()))
        elif number == 1:
            cached(("0",), readers[0])  # used again
    assert len(list(folder.iterdir())) == 2
    for number in (0, 2, 1):
        cached((str(number),), readers[number])
    assert [reader.times for reader in readers] == [1, 2, 1]


@pytest.mark.parametrize("switch", ["", "0"])
def test_the_cache_can_be_switched_off(folder, monkeypatch, switch):
    monkeypatch.setenv("SFT_JAX_CACHE", switch)
    reader = Reader(split_of(7))
    for _ in range(2):
        cached(("key",), reader)
    assert reader.times == 2
    assert not folder.exists()


def test_the_digest_of_a_source_depends_on_names_and_contents(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"1")
    digests = [source_digest(source)]
    (source / "a").write_bytes(b"2")
    digests.append(source_digest(source))
    (source / "a").rename(source / "b")
    digests.append(source_digest(source))
    (source / "c").write_bytes(b"")
    digests.append(source_digest(source))
    assert len(set(digests)) == 4
    assert digests[-1] == source_digest(source)
    monkeypatch.setattr(split_cache, "SOURCE_BYTES", 0)
    assert source_digest(source) is None


def test_the_default_is_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("SFT_JAX_CACHE")
    monkeypatch.setattr(cache.platformdirs, "user_cache_path", lambda name, appauthor: tmp_path / name)
    assert cache.cache_folder("splits") == tmp_path / "sft-jax" / "splits"


SCRIPT = """
import jax
from sft_jax.runtime.cache import keep_compiled_programs
keep_compiled_programs()
print(jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.long
def test_a_cache_chosen_for_jax_is_left_alone(tmp_path):
    chosen = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax"), "SFT_JAX_CACHE": str(tmp_path / "ours")}
    for environment, expected in (
        (chosen, str(tmp_path / "jax")),
        ({"SFT_JAX_CACHE": str(tmp_path / "ours")}, str(tmp_path / "ours" / "programs" / cache._processor())),
        ({"SFT_JAX_CACHE": "0"}, "None"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=os.environ | environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected
        assert done.stderr == ""


COMPILES = """
import jax
from sft_jax.runtime.cache import keep_compiled_programs
keep_compiled_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
jax.jit(lambda x: x * 2 + 1)(1.0)
print(hits.count("/jax/compilation_cache/cache_hits"))
"""


@pytest.mark.long
def test_a_second_process_reuses_the_programs_of_the_first(tmp_path):
    environment = os.environ | {"SFT_JAX_CACHE": str(tmp_path / "ours"), "XLA_FLAGS": ""}
    hits = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", COMPILES], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        hits.append(int(done.stdout))
    assert hits[0] == 0
    assert hits[1] > 0
