"""Tests of a run with a full disk, read-only folders, and another run in the same folder."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tiny_runs import assert_same_run, run, state_of

from sft_jax.config import complete
from sft_jax.errors import UserError
from sft_jax.run.folder import Run

# Orbax's threads continue to write after one of them has failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture
def mounted(tmp_path):
    """Mounts a small file system; skips the test if that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)]
        if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a file system needs root")
        return place

    yield mount
    subprocess.run(["umount", "--lazy", str(place)], capture_output=True, check=False)


@pytest.fixture
def quota_disk(tmp_path):
    """Mounts a file system with quotas: btrfs, because those of ext4 and tmpfs do not apply to root."""
    if os.geteuid() or not shutil.which("mkfs.btrfs"):
        pytest.skip("a quota needs root and btrfs-progs (apt install btrfs-progs)")
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(2**30)  # sparse
    subprocess.run(["mkfs.btrfs", "--quiet", image], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", image, place], capture_output=True, check=False).returncode:
        pytest.skip("this system does not mount btrfs from a file")
    subprocess.run(["btrfs", "quota", "enable", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=False)
    image.unlink()


def message(action) -> str:
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def size_of(folder) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.long
def test_a_run_continues_after_the_disk_was_full(whole, mounted):
    """The first epochs' checkpoints fit and the next does not; with space again the run continues."""
    saved = size_of(whole[0] / "checkpoints" / "best")
    # Space for the old and new checkpoints, latest and best, and for the run's other files.
    disk = mounted(f"size={5 * saved + size_of(whole[0])}")
    place = disk / "run"
    run(place, epochs=1)
    ballast = disk / "ballast"
    left = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
    ballast.write_bytes(bytes(left - saved // 2))
    before = state_of(place)

    said = message(lambda: run(place, resume=True))
    assert "cannot be written, earlier ones are kept: " in said
    assert "No space left on device" in said
    assert_same_arrays(state_of(place), before)
    assert not list(place.glob("**/*.orbax-checkpoint-tmp*")), "no partial checkpoint takes up space"

    ballast.unlink()
    run(place, resume=True)
    assert_same_run(place, whole[0])


def limit(disk, room):
    """Limits the free space to `room` bytes, or removes the limit."""
    subprocess.run(["btrfs", "filesystem", "sync", disk], check=True)  # only data on disk counts
    amount = "none" if room is None else str(size_of(disk) + room)
    subprocess.run(["btrfs", "qgroup", "limit", amount, disk], check=True)


@pytest.mark.long
def test_a_run_continues_after_a_quota_was_exceeded(whole, quota_disk):
    """The next checkpoint does not fit; with space again the run continues."""
    place = quota_disk / "run"
    run(place, epochs=1)
    before = state_of(place)
    limit(quota_disk, size_of(place / "checkpoints" / "latest") // 2)

    said = message(lambda: run(place, resume=True))
    assert "cannot be written, earlier ones are kept: " in said
    assert "Disk quota exceeded" in said
    assert_same_arrays(state_of(place), before)
    assert not list(place.glob("**/*.orbax-checkpoint-tmp*")), "no partial checkpoint takes up space"

    limit(quota_disk, None)
    run(place, resume=True)
    assert_same_run(place, whole[0])


FILLED = """
import sys
from pathlib import Path
import numpy as np
from sft_jax.run.checkpoints import Checkpoints
from sft_jax.errors import run_command
arrays = {str(number): np.random.default_rng(number).random(200_000, np.float32) for number in range(30)}
sys.exit(run_command(lambda: Checkpoints(Path(sys.argv[1])).save("latest", 1, arrays, {})))
"""


@pytest.mark.long
def test_a_full_disk_is_a_one_line_error(mounted):
    """Many arrays fail at once, and no tracebacks of the others are printed."""
    disk = mounted("size=4m")
    command = [sys.executable, "-c", FILLED, str(disk / "checkpoints")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: checkpoint {disk}/checkpoints/latest/1 cannot be written, ")
    assert "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1


# TensorBoard's file, which cannot be flushed when it is closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_too_small_for_a_run_is_an_error(mounted):
    disk = mounted("size=16k")
    (disk / "ballast").write_bytes(bytes(12 * 1024))
    assert "cannot be written" in message(lambda: run(disk / "run"))
    assert "No space left on device" in message(lambda: run(disk / "run", resume=True))


def test_a_read_only_disk_is_an_error(mounted):
    disk = mounted("size=1m")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    said = message(lambda: run(disk / "run"))
    assert said == (f"{disk}/run cannot be written to: [Errno 30] Read-only file system: '{disk}/run'")


def test_a_folder_of_another_user_is_an_error(tmp_path):
    """Runs as nobody, because root may write everywhere."""
    if os.geteuid():
        (tmp_path / "run").mkdir(mode=0o500)
        assert "Permission denied" in message(lambda: claim(tmp_path / "run"))
        return
    for parent in [tmp_path, *tmp_path.parents[:3]]:
        parent.chmod(0o755)
    os.seteuid(65534)
    try:
        said = message(lambda: claim(tmp_path / "run"))
    finally:
        os.seteuid(0)
    assert said.startswith(f"{tmp_path}/run cannot be written to: ")
    assert "Permission denied" in said


def claim(folder, *, resume=False):
    with Run(folder).claimed(complete({}), resume=resume):
        pass


def test_two_runs_in_one_folder_are_refused(tmp_path):
    refusal = f"another process is training in {tmp_path}; wait for it, stop it, or use another --workdir"
    with Run(tmp_path).claimed(complete({}), resume=False):
        assert message(lambda: claim(tmp_path)) == refusal
        Run(tmp_path).write_config(complete({}))
        # Once there is a record, another run is refused before it reads any data.
        assert message(lambda: Run(tmp_path).check_use(complete({}), resume=True)) == refusal
    claim(tmp_path, resume=True)
    assert "already contains a run" in message(lambda: claim(tmp_path))


@pytest.mark.long
def test_a_folder_claimed_in_the_meantime_is_refused(whole, tmp_path):
    """Both saw an empty folder; the second starts after the first has claimed it."""
    folder = tmp_path / "run"
    with Run(folder).claimed(complete({}), resume=False):
        assert "another process is training in" in message(lambda: run(folder))
        assert {path.name for path in folder.iterdir()} == {".lock"}
    run(folder)
    assert_same_run(folder, whole[0])


@pytest.mark.long
def test_a_claim_ends_with_its_process(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from sft_jax.run.folder import Run; "
        "from sft_jax.config.recipe import complete; "
        "Run(Path(sys.argv[1])).claimed(complete({}), resume=False).__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / ".lock").exists()
    claim(tmp_path)


def assert_same_arrays(one, other):
    assert one.step == other.step
    for key, array in other.arrays.items():
        np.testing.assert_array_equal(one.arrays[key], array, err_msg=key, strict=True)
