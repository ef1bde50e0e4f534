"""Image sets of Hugging Face's hub, by name: hf://OWNER/NAME, or hf://OWNER/NAME@REVISION."""

import importlib.util
import os
import re
import urllib.parse
from pathlib import Path

from sft_jax.config.shipped import install_command
from sft_jax.data.sources.tfds import reachable
from sft_jax.errors import UserError

PREFIX = "//"


def is_of_hub(rest: str) -> bool:
    """Returns whether what follows "hf:" names a set of the hub, not a path."""
    return rest.startswith(PREFIX)


def snapshot(rest: str, *, download: bool) -> Path:
    """Returns the folder of a set in the hub's cache, after downloading what is missing.

    Args:
      rest: "//OWNER/NAME" or "//OWNER/NAME@REVISION".
      download: whether it may be downloaded.

    Raises:
      UserError: the name is not valid, there is no such set, or it is neither in the cache nor reachable.
    """
    name, revision = _parsed(rest)
    hub = _hub(rest)
    local = _cached(hub, name, revision)
    # A commit never changes; other revisions may have moved on.
    if local is not None and (not download or re.fullmatch(r"[0-9a-f]{40}", revision or "") or not _is_reachable()):
        return local
    _check_obtainable(rest, download)
    try:
        return Path(hub.snapshot_download(name, repo_type="dataset", revision=revision))
    except Exception as error:  # of HTTP libraries, the hub and the file system
        why = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(f"hf:{rest} cannot be downloaded: {why}; download it by hand, and use hf:FOLDER") from error


def check_hub(rest: str, *, download: bool) -> tuple[bool, str]:
    """Returns whether a set is on this machine, and a description. Arguments and errors are those of `snapshot`."""
    name, revision = _parsed(rest)
    local = _cached(_hub(rest), name, revision)
    if local is not None:
        return True, f"downloaded in {local}"
    _check_obtainable(rest, download)
    return False, f"will be downloaded from {_host()}"


def _parsed(rest: str) -> tuple[str, str | None]:
    name, _, revision = rest.removeprefix(PREFIX).partition("@")
    name = name.removeprefix("datasets/").strip("/")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UserError(f"data.source=hf:{rest} must be hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    return name, revision or None


def _hub(rest: str):
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(f"hf:{rest} needs huggingface_hub: {install_command('hub')}; or download it, and use hf:FOLDER")
    import huggingface_hub

    return huggingface_hub


def _cached(hub, name: str, revision: str | None) -> Path | None:
    """Returns the folder of what was downloaded before; None if there is nothing."""
    try:
        return Path(hub.snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True))
    except Exception:  # several, which differ between versions
        return None


def _is_reachable() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "0") in ("", "0") and reachable(_host())


def _host() -> str:
    # As in huggingface_hub.
    return urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname or ""


def _check_obtainable(rest: str, download: bool) -> None:
    where = f"hf:{rest} is not in the cache of huggingface_hub"
    if not download:
        raise UserError(f"{where} and data.download is False; download it, or use hf:FOLDER of a copy")
    if not _is_reachable():
        raise UserError(f"{where} and {_host()} is unreachable; go online, or use hf:FOLDER of a copy")
