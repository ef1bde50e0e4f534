"""Selects the platform of JAX, and detects the machine's accelerators without JAX."""

import shutil
import subprocess
from pathlib import Path

from sft_jax.config.shipped import install_command
from sft_jax.errors import UserError

PLATFORMS = ("cpu", "gpu", "tpu")
INSTALL = {"gpu": install_command("cuda"), "tpu": install_command("tpu")}
# Device files of the drivers, as in jax's hardware_utils.py; /dev/dxg is NVIDIA's on WSL 2.
_NVIDIA_FILES = ("/dev/nvidia0", "/dev/dxg")
_AMD_FILE = "/dev/kfd"
# PCI vendor ID of Google and device IDs of its TPUs, v3 to 7, as seen in a TPU VM.
_GOOGLE = "0x1ae0"
_TPUS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}


def use_platform(platform: str) -> None:
    """Makes JAX run on `platform`, one of `PLATFORMS`, regardless of JAX_PLATFORMS. Call it before JAX is used.

    Raises:
      UserError: JAX finds no such device; it would otherwise fall back to the CPU.
    """
    import jax

    jax.config.update("jax_platforms", "cpu" if platform == "cpu" else "")
    try:
        backend = jax.default_backend()
    except RuntimeError as error:
        raise UserError(f"--platform {platform} is not available: {str(error).splitlines()[0]}") from None
    if backend != platform:
        raise UserError(
            f"--platform {platform}: JAX finds no {platform.upper()} on this machine, only {backend.upper()}; "
            f"install JAX for it with {INSTALL[platform]}, and see python -m sft_jax.doctor for the available devices"
        )


def on_machine() -> dict[str, str]:
    """Detects the accelerators of this machine without JAX; returns platform -> description."""
    accelerators = {}
    if nvidia := _nvidia():
        accelerators["gpu"] = nvidia
    elif Path(_AMD_FILE).exists():
        accelerators["gpu"] = "AMD GPU"
    if _has_tpu():
        accelerators["tpu"] = "TPU"
    return accelerators


def _nvidia() -> str:
    """Returns the names of the NVIDIA GPUs as reported by their driver; empty if there are none."""
    command = shutil.which("nvidia-smi")
    if command is not None:
        query = [command, "--query-gpu=name", "--format=csv,noheader"]
        try:
            done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
            return ", ".join(done.stdout.split("\n")).strip(", ")
        except (OSError, subprocess.SubprocessError):
            pass  # nvidia-smi is installed, but there is no GPU or no driver
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
