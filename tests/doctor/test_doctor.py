"""Tests of the doctor: its checks, the commands it suggests, and its exit codes."""

import importlib.metadata
import json
import sys

import pytest
from commands import called
from packaging.requirements import Requirement

from sft_jax.data.sources import tfds
from sft_jax.doctor import inputs, installed, machine
from sft_jax.doctor.__main__ import QUICK_START, main
from sft_jax.doctor.finding import MISSING, OK, WARN, Finding
from sft_jax.runtime.cache import SWITCH


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """Runs in an empty folder, offline, and without setting the allocator."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(inputs, "reachable", lambda host: False)
    monkeypatch.setattr(tfds, "reachable", lambda host: False)
    monkeypatch.setattr("sft_jax.runtime.allocator.keep_freed_memory", lambda: False)


@pytest.fixture
def doctor(monkeypatch, capsys):
    """Runs the command; returns exit code, standard output and standard error."""

    def run(*flags):
        return called(monkeypatch, capsys, main, "doctor", *flags)

    return run


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.py"
    values = {"init": "scratch", "model.name": "tiny", "data.source": "digits:0-4", "data.size": 16, "batch_size": 64}
    path.write_text(f"from sft_jax.config.recipe import complete\ndef get_config(arg): return complete({values!r})\n")
    return path


def test_without_a_config_the_machine_is_checked(doctor):
    code, out, error = doctor()
    assert (code, error) == (0, "")
    lines = out.splitlines()
    marks = {line[8:20].strip(): line[:8].strip() for line in lines[: lines.index("")]}
    for name in ("python", "packages", "optional", "devices", "disk"):
        assert marks[name] == OK, out
    # These are the CIFAR-10 recipe's, which the quick start does not need.
    assert marks["data"] == marks["weights"] == WARN
    assert lines[lines.index("next:") + 1 :][-2:] == [f"  {command}" for command in QUICK_START]


def test_a_config_has_a_plan_and_costs(doctor, recipe):
    code, out, error = doctor("--config", recipe, "--json", "--config.epochs=3")
    assert (code, error) == (0, "")
    report = json.loads(out)
    assert report["usable"]
    assert {finding["mark"] for finding in report["findings"]} <= {OK, WARN}
    assert any("3 epochs of 8 steps, batch 64" in line for line in report["plan"])
    (cost,) = report["costs"]
    assert cost["size"] == 16
    assert cost["memory_bytes"] > 2**20
    assert cost["gflop"] > 0
    # 8 training and 3 validation batches.
    assert cost["epoch_s"] == pytest.approx((8 * cost["step_ms"] + 3 * cost["evaluation_ms"]) / 1e3)
    assert report["next"][-1] == f"python -m sft_jax.main --config {recipe} --config.epochs=3"


def test_missing_weights_are_named_with_the_commands_that_create_them(doctor, recipe, monkeypatch):
    monkeypatch.setattr(inputs, "reachable", lambda host: True)
    code, out, error = doctor("--config", recipe, "--config.init=w/a.safetensors", "--config.model.name=resnet50")
    assert (code, error) == (2, "error: missing: weights; see the commands above\n")
    command = "python convert/resnet_to_flax.py --arch resnet50 --output w/a.safetensors"
    assert out.splitlines()[-2].strip() == command
    assert out.splitlines()[-1].strip().startswith("python -m sft_jax.doctor --config"), "then the doctor is run again"
    assert "missing weights     w/a.safetensors does not exist yet" in out


def test_offline_the_command_needs_a_local_file(doctor, recipe):
    _, out, _ = doctor("--config", recipe, "--config.init=w/a.safetensors")
    assert "download.pytorch.org is unreachable" in out
    assert "--output w/a.safetensors --state-dict FILE.pth" in out


def test_missing_data_is_named(doctor, recipe, tmp_path):
    code, out, error = doctor("--config", recipe, "--config.data.source=folder:nowhere")
    assert code == 2
    assert "missing data        no such folder: nowhere" in out
    code, out, error = doctor("--config", recipe, "--config.data.source=tfds:cifar10", "--json")
    assert code == 2
    assert error.count("\n") == 1
    data = next(finding for finding in json.loads(out)["findings"] if finding["name"] == "data")
    assert data["mark"] == MISSING
    assert "--config.data.dir=FOLDER" in data["text"]
    assert not (tmp_path / "tfds").exists(), "nothing is downloaded"


@pytest.mark.parametrize("flags", [["--sizes"], ["--config.epochs=3"]])
def test_flags_about_a_config_need_one(flags, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["doctor", *flags])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2


def test_versions_outside_the_range_are_reported(monkeypatch):
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1.0" if name == "jax" else version(name))
    findings = {finding.name: finding for finding in installed.check_installed()}
    assert findings["packages"].mark == MISSING
    assert findings["packages"].text.startswith("jax 0.1.0 is installed, but >=")
    assert findings["packages"].remedies == ("pip install -e .",)


def test_a_missing_project_is_reported():
    (finding,) = installed.check_installed("no-such-project")
    assert (finding.mark, finding.text) == (MISSING, "no-such-project is not installed")


def test_extras_are_followed():
    assert installed.unmet(Requirement("sft-jax")) == []
    assert installed.unmet(Requirement("sft-jax[convert]")) == installed.unmet(Requirement("torchvision")) == []
    assert installed.unmet(Requirement("no-such-package>=1")) == ["no-such-package is not installed"]
    assert installed.unmet(Requirement("jax>=99"))[0].endswith(" is installed, but >=99 is required")


@pytest.mark.parametrize(
    ("words", "forced", "text", "remedies"),
    [
        ("Tesla T4", None, "this machine has Tesla T4, which JAX does not use", ("pip install -e '.[cuda]'",)),
        ("Tesla T4", "cpu", "this machine has Tesla T4, which JAX does not use because of JAX_PLATFORMS=cpu", None),
        ("AMD GPU", None, "this machine has AMD GPU, which JAX does not use: see https://docs.jax.dev/", ()),
    ],
)
def test_an_accelerator_that_jax_does_not_use_is_reported(words, forced, text, remedies, monkeypatch):
    monkeypatch.setattr(machine.accelerators, "on_machine", lambda: {"gpu": words})
    monkeypatch.delenv("JAX_PLATFORMS")
    if forced:
        monkeypatch.setenv("JAX_PLATFORMS", forced)
    devices, gpu = machine.check_devices()
    assert devices.text.startswith("8 x cpu, ")
    assert gpu.mark == WARN
    assert gpu.text.startswith(text)
    assert gpu.remedies == (("unset JAX_PLATFORMS",) if remedies is None else remedies)


def test_the_cache_folder_is_checked(tmp_path, monkeypatch):
    monkeypatch.setenv(SWITCH, "0")
    assert machine.check_cache().remedies == (f"unset {SWITCH}",)
    folder = tmp_path / "cache"
    monkeypatch.setenv(SWITCH, str(folder))
    (folder / "programs").mkdir(parents=True)
    (folder / "programs" / "a").write_bytes(bytes(3 << 20))
    assert machine.check_cache() == Finding("cache", OK, f"{folder}, 3 MiB")
    (tmp_path / "file").touch()
    monkeypatch.setenv(SWITCH, str(tmp_path / "file"))
    assert machine.check_cache().mark == WARN


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    assert machine.check_disk(tmp_path).mark == OK
    monkeypatch.setattr(machine, "DISK_BYTES", 1 << 60)
    assert machine.check_disk(tmp_path).mark == WARN
