"""Reads state_dicts from files, and obtains torchvision's own weights."""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import re
import socket
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
import torchvision

from convert import heads, npz, safe_load, unwrap
from convert.families import reference_of
from sft_jax import models
from sft_jax.errors import UserError
from sft_jax.models.weights import some_of

# Seconds without an answer after which a download is aborted.
TIMEOUT = 10.0
# First bytes of the pointer file that a clone without Git LFS has in place of the weights.
LFS = b"version https://git-lfs"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A network in a file.

    Attributes:
      state_dict: its tensors under the reference's names; without those of the head if that is not one linear layer.
      notices: what was unwrapped, renamed and dropped.
      class_names: names of its outputs, if the file records them.
      metadata: metadata of a `.safetensors` file.
    """

    state_dict: dict[str, torch.Tensor]
    notices: list[str]
    class_names: tuple[str, ...] | None
    metadata: dict[str, str]


def read(path: Path, key: str | None = None, *, arch: str = "resnet18") -> Checkpoint:
    """Reads a state_dict of the family of `arch` without running any code in its file.

    Args:
      path: an existing file, `.safetensors`, `.npz` (see `npz.py`), or otherwise written by torch.save.
      key: which of several state_dicts to use, see `unwrap.choose`.
      arch: name of the network.

    Raises:
      UserError: the file is damaged, contains no state_dict, or contains several networks.
    """
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise UserError(f"{path} is only a Git LFS pointer; fetch the file with git lfs pull")
    renamed: list[str] = []
    metadata: dict[str, str] = {}
    if path.suffix == ".npz":
        content, renamed = npz.read(path)
        class_names = None
    elif path.suffix == ".safetensors":
        content, metadata = _read_safetensors(path)
        class_names = unwrap.class_names_in({"class_names": _parsed(metadata.get("class_names", ""))})
    else:
        content = safe_load.load(path)
        class_names = unwrap.class_names_in(content)
    reference, architecture = reference_of(arch), models.architecture(arch)
    chosen, notices = unwrap.choose(content, reference.dialects(arch), key, str(path), architecture.reference)
    notices = renamed + notices
    if chosen.naming is None:
        return Checkpoint(chosen.tensors, notices, class_names, metadata)
    if reference.dense:
        own, beside = chosen.split()
        notices += [f"dropped, not part of the network: {some_of(list(beside))}"] if beside else []
        return Checkpoint(own, notices, class_names, metadata)
    head = architecture.module_path(architecture.head)
    state_dict, more = heads.with_plain_head(*chosen.split(), chosen.naming.prefix, reference, head)
    return Checkpoint(state_dict, notices + more, class_names, metadata)


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format", "").startswith("sft-jax"):
                raise UserError(f"{path} is already converted; use it directly: --config.init={path}")
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file: {error}") from None


def _parsed(text: str) -> Any:
    """Parses JSON written by another program; None if it is invalid."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def torchvision_file(arch: str, name: str) -> Path:
    """Returns the file of torchvision's weights `name` for `arch`, downloaded if necessary and checked by hash.

    Raises:
      UserError: there are no such weights, the download fails, or the hash does not match.
    """
    known = torchvision.models.get_model_weights(arch)
    if name not in known.__members__:
        near = difflib.get_close_matches(name, known.__members__, n=1, cutoff=0.0)[0]
        raise UserError(
            f"torchvision has no weights {name!r} for {arch}, only {', '.join(known.__members__)}; "
            f"did you mean --weights {near}?"
        )
    url = known[name].url
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not path.exists():
        elsewhere = f"download it elsewhere, copy it here and use --state-dict {path.name}"
        try:
            with _socket_timeout(TIMEOUT):
                known[name].get_state_dict(check_hash=True, weights_only=True, map_location="cpu")
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise UserError(f"{url} cannot be downloaded ({reason}); {elsewhere}") from None
        except RuntimeError as error:  # hash mismatch
            raise UserError(f"the download of {url} is damaged ({error}); try again, or {elsewhere}") from None
    expected = _expected(path.name)
    if expected and not sha256(path).startswith(expected):
        raise UserError(f"{path} is damaged: its SHA-256 does not begin with {expected}; delete it and try again")
    return path


def published(arch: str, digest: str) -> str | None:
    """Returns the name of torchvision's weights for `arch` with this SHA-256; None if there are none."""
    if models.architecture(arch).reference != "torchvision":
        return None
    known = torchvision.models.get_model_weights(arch)
    return next((name for name in known.__members__ if digest.startswith(_expected(known[name].url) or "none")), None)


def _expected(name: str) -> str | None:
    """Returns the beginning of the SHA-256 that a file name or URL of torchvision's contains."""
    match = re.search(r"-([0-9a-f]{8,})\.", name)
    return match and match[1]


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
