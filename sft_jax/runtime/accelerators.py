"""Accelerators: those that JAX uses, and those that the machine has."""

import shutil
import subprocess
from pathlib import Path

from sft_jax.config.shipped import install_command
from sft_jax.errors import UserError

PLATFORMS = ("cpu", "gpu", "tpu")
INSTALL = {"gpu": install_command("cuda"), "tpu": install_command("tpu")}
# How the drivers show their devices; /dev/dxg: NVIDIA's on WSL 2. As jax's hardware_utils.py looks for them.
_NVIDIA_FILES = ("/dev/nvidia0", "/dev/dxg")
_AMD_FILE = "/dev/kfd"
# PCI's numbers of Google and of its TPUs, v3 to 7, which a TPU VM shows.
_GOOGLE = "0x1ae0"
_TPUS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}


def use_platform(platform: str) -> None:
    """Makes JAX run on `platform`, one of `PLATFORMS`, whatever JAX_PLATFORMS says; to be called before its first use.

    Raises:
      UserError: JAX finds no such device here. It would fall back to the CPU.
    """
    import jax

    jax.config.update("jax_platforms", "cpu" if platform == "cpu" else "")
    try:
        found = jax.default_backend()
    except RuntimeError as error:
        raise UserError(f"--platform {platform} cannot be had: {str(error).splitlines()[0]}") from None
    if found != platform:
        raise UserError(
            f"--platform {platform}: JAX finds no {platform.upper()} on this machine, only {found.upper()}; "
            f"{INSTALL[platform]} installs JAX for one, and python -m sft_jax.doctor says what there is"
        )


def on_machine() -> dict[str, str]:
    """The accelerators of this machine, seen without JAX: platform -> in words."""
    found = {}
    if nvidia := _nvidia():
        found["gpu"] = nvidia
    elif Path(_AMD_FILE).exists():
        found["gpu"] = "AMD GPU"
    if _has_tpu():
        found["tpu"] = "TPU"
    return found


def _nvidia() -> str:
    """The names of NVIDIA's GPUs, as their driver has them; empty where there is none."""
    command = shutil.which("nvidia-smi")
    if command is not None:
        query = [command, "--query-gpu=name", "--format=csv,noheader"]
        try:
            done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
            return ", ".join(done.stdout.split("\n")).strip(", ")
        except (OSError, subprocess.SubprocessError):
            pass  # it is installed, but there is no GPU, or no driver
    return "NVIDIA GPU" if any(Path(file).exists() for file in _NVIDIA_FILES) else ""


def _has_tpu() -> bool:
    if Path("/dev/accel0").exists():
        return True
    folders = Path("/sys/bus/pci/devices").glob("*")
    return any(_read(folder / "vendor") == _GOOGLE and _read(folder / "device") in _TPUS for folder in folders)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
