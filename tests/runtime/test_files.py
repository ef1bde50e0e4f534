"""Tests that files are written atomically: a failure leaves the old file as it was, and no other file behind."""

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys

import pytest

from sft_jax.errors import UserError
from sft_jax.runtime.files import write_bytes, write_json, write_rows, write_text, written_whole

OLD, NEW = b"old" * 1000, b"new" * 2000
WRITERS = {
    "bytes": (write_bytes, NEW, NEW),
    "text": (write_text, "neu: ö\n", "neu: ö\n".encode()),
    "json": (write_json, {"b": 1, "a": [1.5]}, b'{\n  "b": 1,\n  "a": [\n    1.5\n  ]\n}\n'),
    "rows": (write_rows, [{"a": 1}, {"a": None}], b'{"a": 1}\n{"a": null}\n'),
}


@pytest.fixture
def old(tmp_path):
    """An existing file, alone in its folder."""
    path = tmp_path / "folder" / "name [1].json"
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


def message(action) -> str:
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_untouched(path):
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == {path.name: OLD}


@pytest.mark.parametrize("kind", WRITERS)
def test_files_have_the_given_content(kind, old, tmp_path):
    write, value, content = WRITERS[kind]
    for path in (old, tmp_path / "new" / "folder" / "file"):
        write(path, value)
        assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == {path.name: content}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), ValueError("exporter"), KeyboardInterrupt()])
def test_an_interrupted_block_leaves_the_old_file_alone(old, error):
    expected = UserError if isinstance(error, OSError) else type(error)

    def interrupted():
        with written_whole(old) as temporary:
            temporary.write_bytes(NEW)
            assert old.read_bytes() == OLD, "until the end of the block"
            raise error

    with pytest.raises(expected):
        interrupted()
    assert_untouched(old)


def test_a_block_that_writes_nothing_is_an_error(old):
    def nothing():
        with written_whole(old):
            pass

    assert message(nothing).startswith(f"{old} cannot be written: [Errno 2] ")
    assert_untouched(old)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_a_one_line_error(kind, old):
    """A limit on file sizes makes the write fail half-way, as on a full disk."""
    write, value, content = WRITERS[kind]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) - 1, before[1]))
    try:
        said = message(lambda: write(old, value))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert said == f"{old} cannot be written: [Errno {errno.EFBIG}] File too large"
    assert_untouched(old)


def test_a_file_that_cannot_be_replaced_is_a_one_line_error(old, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("sft_jax.runtime.files.os.replace", full)
    assert message(lambda: write_bytes(old, NEW)) == f"{old} cannot be written: No space left on device"
    assert_untouched(old)


def test_a_folder_or_file_in_the_way_is_a_one_line_error(old, monkeypatch):
    assert message(lambda: write_bytes(old.parent, NEW)).startswith(f"{old.parent} cannot be written: [Errno ")
    assert message(lambda: write_bytes(old / "file", NEW)).startswith(f"{old}/file cannot be written: [Errno ")
    monkeypatch.chdir(old.parent)
    assert message(lambda: write_bytes(old.parent.relative_to(old.parent), NEW)).startswith(". cannot be written: ")
    assert_untouched(old)


def test_a_folder_of_another_user_is_a_one_line_error(old):
    """Runs as nobody, because root may write everywhere."""
    old.parent.chmod(0o555)
    if not os.geteuid():
        for parent in old.parents[1:4]:
            parent.chmod(0o755)
        os.seteuid(65534)
    try:
        said = message(lambda: write_bytes(old, NEW))
    finally:
        if not os.getuid():
            os.seteuid(0)
        old.parent.chmod(0o755)
    assert said.startswith(f"{old} cannot be written: [Errno {errno.EACCES}] Permission denied")
    assert_untouched(old)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_permissions_are_those_of_an_ordinary_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "ours", NEW)
        (tmp_path / "ordinary").write_bytes(NEW)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "ordinary")]
    assert modes == [0o666 & ~umask] * 2


# Runs in its own process, which kills itself before the file is complete.
KILLED = """
import os, signal, sys
from pathlib import Path
from sft_jax.runtime.files import written_whole
with written_whole(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"new")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_write_removes_what_a_killed_process_left(old):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(old)])
    assert process.wait() == -signal.SIGKILL
    assert old.read_bytes() == OLD
    assert {file.name for file in old.parent.iterdir()} == {old.name, f"{old.name}.{process.pid}.tmp"}
    write_bytes(old, NEW)
    assert {file.name: file.read_bytes() for file in old.parent.iterdir()} == {old.name: NEW}


def test_no_other_file_is_taken_for_a_leftover(old):
    """In particular not a file that a running process is writing."""
    names = [
        f"{old.name}.{os.getppid()}.tmp",
        f"{old.name}.99999999999999999999.tmp",
        f"{old.name}.mine.tmp",
        f"{old.name}.tmp",
        "name 1.json.999999999.tmp",
        f"other {old.name}.999999999.tmp",
    ]
    for name in names:
        (old.parent / name).write_bytes(b"")
    write_bytes(old, NEW)
    assert {file.name for file in old.parent.iterdir()} == {old.name, *names}


# Each writes its own letter over and over.
WRITER = """
import sys
from pathlib import Path
from sft_jax.runtime.files import write_json
for _ in range(300):
    write_json(Path(sys.argv[1]), {"letter": sys.argv[2] * 100_000})
"""


def test_processes_may_write_one_file_at_the_same_time(old):
    write_json(old, {"letter": "a"})
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(old), letter]) for letter in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        letters = json.loads(old.read_text())["letter"]
        assert len(set(letters)) == 1
        seen.add(letters[0])
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen == {"a", "b"}
    assert [file.name for file in old.parent.iterdir()] == [old.name]
