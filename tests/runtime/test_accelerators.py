"""Tests of --platform, which must not fall back to another platform."""

import os
import subprocess
import sys

import pytest

from sft_jax.runtime import accelerators

COMMAND = [sys.executable, "-m", "sft_jax.main", "--config", "recipe.py"]


def run(folder, *flags):
    (folder / "recipe.py").write_text(
        "from sft_jax.config.recipe import default_config as get\ndef get_config(arg): return get()\n"
    )
    done = subprocess.run([*COMMAND, *flags], cwd=folder, env=os.environ, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.long
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_a_missing_accelerator_is_an_error(platform, tmp_path):
    if platform in accelerators.on_machine():
        pytest.skip(f"this machine has a {platform}")
    code, out, error = run(tmp_path, "--platform", platform)
    assert code == 2
    assert out == ""
    assert error.startswith(
        f"error: --platform {platform}: JAX finds no {platform.upper()} on this machine, only CPU; "
    )
    assert accelerators.INSTALL[platform] in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
def test_the_cpu_can_be_requested(tmp_path):
    code, _, error = run(tmp_path, "--platform", "cpu", "--config.batch_size=64")
    assert code == 2
    assert error.startswith("error: no weights at weights/resnet18.safetensors"), "the platform was accepted"


def test_accelerators_are_detected_by_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerators.shutil, "which", lambda _: None)
    for name in ("_NVIDIA_FILES", "_AMD_FILE"):
        absent = tmp_path / "absent"
        monkeypatch.setattr(accelerators, name, (str(absent),) if name.endswith("S") else str(absent))
    monkeypatch.setattr(accelerators, "_has_tpu", lambda: False)
    assert accelerators.on_machine() == {}
    (tmp_path / "kfd").touch()
    monkeypatch.setattr(accelerators, "_AMD_FILE", str(tmp_path / "kfd"))
    assert accelerators.on_machine() == {"gpu": "AMD GPU"}
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(accelerators, "_NVIDIA_FILES", (str(tmp_path / "nvidia0"),))
    assert accelerators.on_machine() == {"gpu": "NVIDIA GPU"}


def test_nvidia_gpus_are_named(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf 'Tesla T4\\nTesla T4\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert accelerators.on_machine()["gpu"] == "Tesla T4, Tesla T4"
    tool.write_text("#!/bin/sh\nexit 9\n")  # no driver
    assert "Tesla" not in accelerators.on_machine().get("gpu", "")
