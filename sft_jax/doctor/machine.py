"""Checks devices and their memory, the cache folder and the disk."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from sft_jax.doctor.finding import MISSING, OK, WARN, Finding
from sft_jax.runtime import accelerators
from sft_jax.runtime.estimate import size_text

# Room for three checkpoints of ResNet-18 with momentum, and one being written.
DISK_BYTES = 1 << 30


def check_devices() -> list[Finding]:
    """Checks which devices JAX uses, and for accelerators that it does not use."""
    import jax

    from sft_jax.runtime.devices import Devices

    try:
        devices, platform = Devices(), jax.default_backend()
    except RuntimeError as error:  # a plugin that cannot start
        return [
            Finding("devices", MISSING, str(error).splitlines()[0], ("JAX_PLATFORMS=cpu python -m sft_jax.doctor",))
        ]
    each = " on each" if devices.count > 1 else ""
    findings = [Finding("devices", OK, f"{devices}, {size_text(devices.free_bytes())} of memory free{each}")]
    for other, words in accelerators.on_machine().items():
        if other == platform:
            continue
        forced = os.environ.get("JAX_PLATFORMS")
        text = f"this machine has {words}, which JAX does not use"
        if forced:
            cause = f"because of JAX_PLATFORMS={forced}"
            findings.append(Finding(other, WARN, f"{text} {cause}", ("unset JAX_PLATFORMS",)))
        elif words.startswith("AMD"):
            findings.append(Finding(other, WARN, f"{text}: see https://docs.jax.dev/en/latest/installation.html"))
        else:
            findings.append(Finding(other, WARN, text, (accelerators.INSTALL[other],)))
    return findings


def check_cache() -> Finding:
    """Checks the cache folder of decoded images and compiled programs."""
    from sft_jax.runtime.cache import SWITCH, cache_folder

    folder = cache_folder("")
    if folder is None:
        return Finding("cache", WARN, f"caching is off: {SWITCH}={os.environ[SWITCH]}", (f"unset {SWITCH}",))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding("cache", WARN, f"{folder} is not writable ({error.strerror}); set another with {SWITCH}=FOLDER")
    return Finding("cache", OK, f"{folder}, {size_text(_size(folder))}")


def check_disk(folder: Path) -> Finding:
    """Checks free disk space in the folder of the runs."""
    free = shutil.disk_usage(folder).free
    text = f"{size_text(free)} free in {folder.resolve()}"
    return (
        Finding("disk", OK, text)
        if free >= DISK_BYTES
        else Finding("disk", WARN, f"{text}: may be too little for checkpoints")
    )


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # removed meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total
