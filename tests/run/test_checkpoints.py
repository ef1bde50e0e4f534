"""Tests of checkpoints under kills, full disks, partial copies, flipped bytes, other devices and versions."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from children import environment
from counted import counts

from sft_jax.errors import UserError
from sft_jax.run.checkpoints import Checkpoints
from sft_jax.runtime.devices import Devices

# tests/golden/checkpoint was written by the first version of this format, as
#   Checkpoints(Path("golden/checkpoint")).save("latest", 7, ARRAYS, METADATA)
# and must stay readable until the format changes.
ARRAYS = {
    "params/conv1.kernel": np.sqrt(np.arange(108, dtype=np.float32)).reshape(3, 3, 3, 4),
    "params/fc.bias": np.array([0.1, -2.5, 1e-30], np.float32),
    "opt_state/1/trace/fc.bias": np.array([0.1, -2.5, 1e30], jnp.bfloat16),
    "step": np.array(7, np.int32),
}
METADATA = {"class_names": ["cat", "dög"], "progress": {"epoch": 1, "best": 0.1, "rows": []}}
# For damage: a single array, because if Orbax reads several at once, its threads print the failures of the others
# later on. It is too large to be stored within the index.
ONE = {"params/conv1.kernel": ARRAYS["params/conv1.kernel"]}


def assert_restored(restored, step, arrays, metadata):
    assert (restored.step, restored.metadata) == (step, metadata)
    assert restored.arrays.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(restored.arrays[key], array, strict=True, err_msg=key)


def folders(directory, name="latest"):
    return sorted(path.name for path in (directory / name).iterdir())


def message(action) -> str:
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def saved(directory, *steps, name="latest"):
    checkpoints = Checkpoints(directory)
    for step in steps:
        checkpoints.save(name, step, ONE, {"step": step})
    return checkpoints


# --- Restoring


def test_round_trip_on_devices(tmp_path):
    arrays = ARRAYS | {"none": np.zeros((0, 3), jnp.bfloat16), "flags": np.array([True, False])}
    Checkpoints(tmp_path).save("latest", 7, {key: jnp.asarray(array) for key, array in arrays.items()}, METADATA)
    restored = Checkpoints(tmp_path).restore("latest")
    restored.check(arrays)
    assert_restored(restored, 7, arrays, METADATA)
    assert restored.notices == ()


def test_metadata_is_exact(tmp_path):
    metadata = {"third": 1 / 3, "tiny": 5e-324, "zero": -0.0, "big": 2**63, "dög\n": [None, True, "\U0001f415"]}
    Checkpoints(tmp_path).save("best", 1, ONE, metadata)
    restored = Checkpoints(tmp_path).restore("best").metadata
    assert repr(restored) == repr(metadata)
    Checkpoints(tmp_path).save("best", 2, ONE, {"loss": float("nan")})
    assert np.isnan(Checkpoints(tmp_path).restore("best").metadata["loss"])


def test_metadata_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError):
        Checkpoints(tmp_path).save("latest", 1, ONE, {"accuracy": np.float32(0.5)})
    assert not list(tmp_path.iterdir())


def test_from_eight_devices_to_one_and_two_and_back(tmp_path):
    arrays, counts = ARRAYS, (8, 1, 2, 8)
    for step, count in enumerate(counts):
        on_devices = Devices(jax.devices()[:count]).replicate(arrays)
        assert len(on_devices["step"].sharding.device_set) == count
        Checkpoints(tmp_path).save("latest", step, on_devices, {})
        arrays = Checkpoints(tmp_path).restore("latest").arrays
    assert_restored(Checkpoints(tmp_path).restore("latest"), len(counts) - 1, ARRAYS, {})


def test_a_checkpoint_of_the_first_version_is_restored(pytestconfig):
    golden = pytestconfig.rootpath / "tests" / "golden" / "checkpoint"
    assert_restored(Checkpoints(golden).restore("latest"), 7, ARRAYS, METADATA)


def test_nothing_is_restored_from_an_empty_folder(tmp_path):
    assert Checkpoints(tmp_path / "no folder").restore("latest") is None
    (tmp_path / "latest").mkdir()
    assert Checkpoints(tmp_path).restore("latest") is None


# --- Retention


def test_the_latest_two_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, accuracy in enumerate([0.5, 0.9, 0.7, 0.6], start=1):
        if accuracy in (0.5, 0.9):
            saved(tmp_path, step, name="best")
        saved(tmp_path, step)
    assert (checkpoints.restore("latest").step, checkpoints.restore("best").step) == (4, 2)
    assert (folders(tmp_path), folders(tmp_path, "best")) == (["3", "4"], ["2"])


def test_a_step_saved_again_is_replaced(tmp_path):
    checkpoints = saved(tmp_path, 8, 9)
    for value in (1.0, 2.0, 3.0):
        arrays = {"a": np.full(3, value, np.float32)}
        checkpoints.save("latest", 9, arrays, {"value": value})
        assert_restored(checkpoints.restore("latest"), 9, arrays, {"value": value})
    assert len(folders(tmp_path)) == 2
    saved(tmp_path, 10)
    assert checkpoints.restore("latest").step == 10


def test_steps_are_ordered_as_numbers(tmp_path):
    saved(tmp_path, 9, 10, 11)
    assert folders(tmp_path) == ["10", "11"]


def test_a_save_is_complete_when_it_returns(tmp_path):
    saved(tmp_path / "a", 1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert_restored(Checkpoints(tmp_path / "b").restore("latest"), 1, ONE, {"step": 1})


# --- Failing saves


# Runs in its own process, which kills itself at the audit event `event` on a path of the last save.
KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from sft_jax.run.checkpoints import Checkpoints
directory, event, part = sys.argv[1:]
checkpoints = Checkpoints(Path(directory))
for step in (1, 2):
    checkpoints.save("latest", step, {"a": np.full(99, step, np.float32)}, {})
def hook(name, arguments):
    if name == event and str(arguments[0]).endswith(part):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
checkpoints.save("latest", 3, {"a": np.full(99, 3, np.float32)}, {})
"""


@pytest.mark.parametrize(
    ("event", "part", "step"),
    [
        pytest.param("open", "facts.orbax-checkpoint-tmp/metadata", 2, id="while it writes"),
        pytest.param("os.rename", "latest/3.orbax-checkpoint-tmp", 2, id="before the rename that completes it"),
        pytest.param("shutil.rmtree", "latest/1", 3, id="before the oldest is removed"),
    ],
)
def test_a_kill_during_a_save_keeps_the_earlier_checkpoints(tmp_path, event, part, step):
    command = [sys.executable, "-c", KILLED, str(tmp_path), event, part]
    killed = subprocess.run(command, env=environment(), check=False)
    assert killed.returncode == -signal.SIGKILL
    left = folders(tmp_path)
    assert left == ["1", "2", "3" if step == 3 else "3.orbax-checkpoint-tmp"]
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore("latest")
    assert_restored(restored, step, {"a": np.full(99, step, np.float32)}, {})
    assert folders(tmp_path) == left
    saved(tmp_path, 4)
    assert folders(tmp_path) == [str(step), "4"]
    assert checkpoints.restore("latest").step == 4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("limit", [0, 200, 20_000])
def test_a_full_disk_keeps_the_earlier_checkpoints(tmp_path, limit):
    """A limit on file sizes makes writes fail as on a full disk, also for root, which ignores permissions."""
    checkpoints = saved(tmp_path, 1)
    large = {"a": np.random.default_rng(0).random(20_000, np.float32)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        said = message(lambda: checkpoints.save("latest", 2, large, {}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"checkpoint {tmp_path}/latest/2 cannot be written, earlier ones are kept: " in said
    assert "File too large" in said
    assert folders(tmp_path) == ["1"]
    assert_restored(checkpoints.restore("latest"), 1, ONE, {"step": 1})
    checkpoints.save("latest", 2, large, {})
    assert_restored(checkpoints.restore("latest"), 2, large, {})


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path):
    (tmp_path / "latest").write_text("a file stands in the way")
    assert "latest/1 cannot be written" in message(lambda: saved(tmp_path, 1))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_an_error(tmp_path):
    checkpoints = saved(tmp_path, 1)
    (tmp_path / "latest").chmod(0o500)
    assert "Permission denied" in message(lambda: saved(tmp_path, 2))
    assert checkpoints.restore("latest").step == 1


def test_a_save_that_does_nothing_is_an_error(tmp_path, monkeypatch):
    saved(tmp_path, 1)
    monkeypatch.setattr(ocp.Checkpointer, "save", lambda *_, **__: False)
    assert "latest/2 cannot be written" in message(lambda: saved(tmp_path, 2))
    assert folders(tmp_path) == ["1"]


# --- Damaged checkpoints


def truncate(folder):
    for path in (folder / "arrays").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def halve(folder):
    shutil.rmtree(folder / "facts")


def clear(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def drop_data(folder):
    for path in (folder / "arrays").rglob("d"):
        shutil.rmtree(path)


def rewrite_facts(change):
    def rewrite(folder):
        path = folder / "facts" / "metadata"
        facts = json.loads(path.read_text())
        path.write_text(json.dumps(change(facts)))

    return rewrite


DAMAGES = {
    "truncated": truncate,
    "half copied": halve,
    "empty": clear,
    "without its data": drop_data,
    "facts of nothing": rewrite_facts(lambda facts: {}),
    "facts of another type": rewrite_facts(lambda facts: []),
    "no digest": rewrite_facts(lambda facts: {key: facts[key] for key in ("format", "contents")}),
    "no contents": rewrite_facts(lambda facts: {key: facts[key] for key in ("format", "digest")}),
    "other contents": rewrite_facts(lambda facts: facts | {"contents": facts["contents"] | {"step": 99}}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path, damage):
    checkpoints = saved(tmp_path, 1, 2)
    damage(tmp_path / "latest" / "2")
    before = sorted(tmp_path.rglob("*"))
    restored = checkpoints.restore("latest")
    assert_restored(restored, 1, ONE, {"step": 1})
    (notice,) = restored.notices
    assert notice.startswith(f"checkpoint {tmp_path}/latest/2 is damaged and was skipped: it")
    assert len(notice) < 1000
    assert sorted(tmp_path.rglob("*")) == before

    damage(tmp_path / "latest" / "1")
    said = message(lambda: checkpoints.restore("latest"))
    assert said.startswith("there is no valid latest checkpoint; ")
    for step in (1, 2):
        assert f"checkpoint {tmp_path}/latest/{step} is damaged" in said
    saved(tmp_path, 3)
    assert checkpoints.restore("latest").step == 3


def test_a_mixture_of_two_checkpoints_is_detected(tmp_path):
    """Every file is valid on its own, so that only our digest detects the damage."""
    checkpoints = saved(tmp_path, 1)
    checkpoints.save("latest", 2, {key: array + 1 for key, array in ONE.items()}, {"step": 2})
    older, newer = (tmp_path / "latest" / step / "arrays" for step in "12")
    shutil.rmtree(newer)
    shutil.copytree(older, newer)
    restored = checkpoints.restore("latest")
    assert restored.step == 1
    assert restored.notices[0].endswith("skipped: its contents have changed since it was saved")


def test_continuing_from_an_earlier_checkpoint_keeps_it(tmp_path):
    """The skipped one is removed first, or a second failure would leave none."""
    checkpoints = saved(tmp_path, 3, 5)
    truncate(tmp_path / "latest" / "5")
    assert checkpoints.restore("latest").step == 3
    saved(tmp_path, 4)
    assert folders(tmp_path) == ["3", "4"]


def test_other_files_and_folders_are_left_alone(tmp_path):
    checkpoints = saved(tmp_path, 1)
    foreign = ["2 (copy)", "2.bak", "best", "-3", "2.1.1", "x2"]
    for name in foreign:
        (tmp_path / "latest" / name).mkdir()
    (tmp_path / "latest" / "7").write_text("a file")
    restored = checkpoints.restore("latest")
    assert (restored.step, restored.notices) == (1, ())
    saved(tmp_path, 2, 3, 4)
    assert folders(tmp_path) == sorted([*foreign, "3", "4", "7"])


# The least number of files in a checkpoint, and the number of bits flipped in each.
FILES, FLIPS = 8, 12


@counts(damages=FILES * FLIPS)
def test_no_flipped_bit_goes_unnoticed(tmp_path):
    checkpoints = saved(tmp_path, 1)
    detected: dict[str, int] = {}
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) >= FILES
    for path in files:
        whole = path.read_bytes()
        for position in np.linspace(0, len(whole) - 1, FLIPS, dtype=int):
            flipped = bytearray(whole)
            flipped[position] ^= 1
            path.write_bytes(flipped)
            try:
                assert_restored(checkpoints.restore("latest"), 1, ONE, {"step": 1})
            except UserError:
                detected[path.name] = detected.get(path.name, 0) + 1
        path.write_bytes(whole)
    assert_restored(checkpoints.restore("latest"), 1, ONE, {"step": 1})
    assert detected["metadata"] == detected["manifest.ocdbt"] == FLIPS, "each byte of metadata and index is checked"
    assert sum(count for name, count in detected.items() if len(name) == 32) >= FLIPS, (
        "the names of data files are hashes"
    )


# --- Checkpoints that do not fit


def test_all_mismatches_are_listed_at_once(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("latest", 7, ARRAYS, {})
    expected = ARRAYS | {
        "params/fc.kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32),
        "params/conv1.kernel": jax.ShapeDtypeStruct((4, 3, 3, 3), jnp.float32),
        "opt_state/1/trace/fc.bias": jax.ShapeDtypeStruct((3,), jnp.float16),
    }
    del expected["step"]
    with pytest.raises(UserError) as caught:
        checkpoints.restore("latest").check(expected)
    assert str(caught.value).splitlines() == [
        f"checkpoint {tmp_path}/latest/7 does not fit this config:",
        "  params/fc.kernel is missing",
        "  step is unknown",
        "  opt_state/1/trace/fc.bias is bfloat16[3], not float16[3]",
        "  params/conv1.kernel is float32[3, 3, 3, 4], not float32[4, 3, 3, 3]",
    ]


def test_a_later_format_is_refused(tmp_path):
    checkpoints = saved(tmp_path, 1, 2)
    rewrite_facts(lambda facts: facts | {"format": 2})(tmp_path / "latest" / "2")
    assert message(lambda: checkpoints.restore("latest")) == (
        f"checkpoint {tmp_path}/latest/2 has format 2, but this version reads format 1; "
        f"use the version of sft-jax that wrote it"
    )


def test_a_folder_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(Path("run"), 1)
    assert Checkpoints(tmp_path / "run").restore("latest").step == 1
