"""Devices and their memory, the cache folder, the disk."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from sft_jax.doctor.finding import MISSING, OK, WARN, Finding
from sft_jax.runtime import accelerators
from sft_jax.runtime.estimate import size_text

# Three checkpoints of ResNet-18 with momentum and one being written.
DISK_BYTES = 1 << 30


def check_devices() -> list[Finding]:
    """What JAX computes on, and the accelerators that it does not see."""
    import jax

    from sft_jax.runtime.devices import Devices

    try:
        devices, platform = Devices(), jax.default_backend()
    except RuntimeError as error:  # a plugin that cannot start
        return [
            Finding("devices", MISSING, str(error).splitlines()[0], ("JAX_PLATFORMS=cpu python -m sft_jax.doctor",))
        ]
    each = " on each" if devices.count > 1 else ""
    found = [Finding("devices", OK, f"{devices}, {size_text(devices.free_bytes())} of memory free{each}")]
    for other, words in accelerators.on_machine().items():
        if other == platform:
            continue
        forced = os.environ.get("JAX_PLATFORMS")
        text = f"this machine has {words}, which JAX does not use"
        if forced:
            found.append(Finding(other, WARN, f"{text}: JAX_PLATFORMS={forced} says so", ("unset JAX_PLATFORMS",)))
        elif words.startswith("AMD"):
            found.append(Finding(other, WARN, f"{text}: see https://docs.jax.dev/en/latest/installation.html"))
        else:
            found.append(Finding(other, WARN, text, (accelerators.INSTALL[other],)))
    return found


def check_cache() -> Finding:
    """The folder of decoded images and compiled programs."""
    from sft_jax.runtime.cache import SWITCH, cache_folder

    folder = cache_folder("")
    if folder is None:
        return Finding(
            "cache", WARN, f"nothing is kept between runs: {SWITCH}={os.environ[SWITCH]}", (f"unset {SWITCH}",)
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding(
            "cache", WARN, f"{folder} cannot be written ({error.strerror}); {SWITCH}=FOLDER names another one"
        )
    return Finding("cache", OK, f"{folder}, {size_text(_size(folder))}")


def check_disk(folder: Path) -> Finding:
    """Free space where runs are written."""
    free = shutil.disk_usage(folder).free
    text = f"{size_text(free)} free in {folder.resolve()}"
    return Finding("disk", OK, text) if free >= DISK_BYTES else Finding("disk", WARN, f"{text}: little for checkpoints")


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # removed meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total
