"""Where state_dicts come from: files, and torchvision's own weights."""

import contextlib
import difflib
import hashlib
import pickle
import re
import socket
import urllib.error
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
import torchvision

from sft_jax.errors import UserError

# Seconds without an answer after which a download is given up.
TIMEOUT = 10.0
# Keys under which training scripts and model collections put the state_dict in a larger dictionary.
WRAPPERS = ("state_dict", "model")


def read_state_dict(path: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Reads a state_dict without running any code in it.

    Args:
      path: an existing file, `.safetensors` or else of torch.save's.

    Returns:
      The tensors by key, and notices about what was unwrapped to get at them.

    Raises:
      UserError: a damaged file, or one that holds something else.
    """
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("format", "").startswith("sft-jax"):
                    raise UserError(f"{path} is converted already; use it as it is: --config.init={path}")
                return _unwrap({key: file.get_tensor(key) for key in file.keys()}, path)  # noqa: SIM118
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged or no safetensors file: {error}") from None
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        found = f"it holds {name[1]}, and" if name else "it may hold more than tensors, and"
        raise UserError(
            f"{path} is no plain state_dict: {found} code in a pickle is never run here; "
            f"where you trust it, load it yourself and torch.save(model.state_dict(), FILE)"
        ) from None
    except Exception as error:  # torch raises many kinds for files that are damaged or not its own
        reason = f"{type(error).__name__}: {error}".partition("\n")[0].partition(". ")[0]
        raise UserError(f"{path} is damaged or no file of torch.save's ({reason})") from None
    return _unwrap(content, path)


def torchvision_file(arch: str, name: str) -> Path:
    """torchvision's weights `name` for `arch`, downloaded where need be and checked against their hash.

    Raises:
      UserError: no such weights, no connection, or a file that is not what its hash says.
    """
    known = torchvision.models.get_model_weights(arch)
    if name not in known.__members__:
        near = difflib.get_close_matches(name, known.__members__, n=1, cutoff=0.0)[0]
        raise UserError(
            f"torchvision has no weights {name!r} for {arch}, only {', '.join(known.__members__)}; "
            f"the nearest is --weights {near}"
        )
    url = known[name].url
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not path.exists():
        elsewhere = f"download it elsewhere, copy it here and name it with --state-dict {path.name}"
        try:
            with _socket_timeout(TIMEOUT):
                known[name].get_state_dict(check_hash=True, weights_only=True, map_location="cpu")
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise UserError(f"{url} cannot be downloaded ({reason}); {elsewhere}") from None
        except RuntimeError as error:  # the hash
            raise UserError(f"the download of {url} is damaged ({error}); try again, or {elsewhere}") from None
    expected = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if expected and not sha256(path).startswith(expected[1]):
        raise UserError(f"{path} is damaged: its SHA-256 does not begin with {expected[1]}; delete it and try again")
    return path


def torchvision_classes(arch: str, name: str) -> tuple[str, ...]:
    """The class names of torchvision's weights `name`."""
    return tuple(torchvision.models.get_model_weights(arch)[name].meta["categories"])


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_archive(path: Path) -> None:
    """Refuses a zip file that is compressed, which may claim terabytes, or damaged: torch checks no checksums."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            if sum(entry.file_size for entry in file.infolist()) > path.stat().st_size:
                raise UserError(
                    f"{path} is compressed, which torch's own never are; load it yourself and torch.save it anew"
                )
            bad = file.testzip()
    except UserError:
        raise
    except Exception as error:  # zipfile raises many kinds for damaged archives
        raise UserError(f"{path} is damaged or no file of torch.save's ({type(error).__name__}: {error})") from None
    if bad is not None:
        raise UserError(f"{path} is damaged: the checksum of {bad} in it is another one")


def _unwrap(content: Any, path: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    notices = []
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            notices.append(f"the state_dict was found under {wrapper!r}")
    if not (isinstance(content, Mapping) and content and all(map(torch.is_tensor, content.values()))):
        raise UserError(
            f"{path} holds no state_dict (tensors by name); make one with torch.save(model.state_dict(), FILE)"
        )
    if all(key.startswith("module.") for key in content):
        content = {key.removeprefix("module."): tensor for key, tensor in content.items()}
        notices.append("the prefix 'module.' of every key was dropped")
    return dict(content), notices


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
