"""`torch.load` without running code: besides tensors, only plain values of a training checkpoint are read."""

import collections
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from sft_jax.errors import UserError


class Ignored:
    """Placeholder for an object of another library. It stores nothing and does nothing, whatever a pickle asks."""

    __slots__ = ()

    def __new__(cls, *_: Any) -> "Ignored":
        """Accepts any arguments."""
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def _dictionary(*_: Any) -> dict:
    return collections.OrderedDict()


# Types that checkpoints contain besides tensors and plain values. None is imported or called: each name is replaced by
# `Ignored`, dictionary types by a dictionary.
BOOKKEEPING = (
    *("argparse.Namespace", "types.SimpleNamespace", "datetime.datetime", "datetime.timedelta", "typing.Any"),
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "slice", "str", "tuple")),
    *(
        f"{module}.{kind}{name}"
        for module in ("pathlib", "pathlib._local")
        for kind in ("", "Pure")
        for name in ("Path", "PosixPath", "WindowsPath")
    ),
    *("numpy.dtype", "numpy.ndarray"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"omegaconf.{name}" for name in ("dictconfig.DictConfig", "listconfig.ListConfig")),
    *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata")),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Float", "Integer", "String")),
    "mmengine.logging.history_buffer.HistoryBuffer",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
)
DICTIONARIES = (
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
STAND_INS: list = [
    *((Ignored, name) for name in BOOKKEEPING),
    *((collections.OrderedDict, name) for name in DICTIONARIES),
    (_dictionary, "collections.defaultdict"),
]


def load(path: Path) -> Any:
    """Reads a file written by `torch.save`, with `Ignored` in place of other libraries' bookkeeping objects.

    Raises:
      UserError: the file is damaged, was not written by torch.save, or contains code.
    """
    _check_archive(path)
    try:
        with torch.serialization.safe_globals(STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it contains {name[1]}" if name else "it may contain more than tensors"
        raise UserError(
            f"{path} is not a plain state_dict: {what}, and code in a pickle is never run here; "
            f"if you trust it, load it yourself and torch.save(model.state_dict(), FILE)"
        ) from None
    except Exception as error:  # torch raises many types for damaged and foreign files
        reason = f"{type(error).__name__}: {error}".partition("\n")[0].partition(". ")[0]
        raise UserError(f"{path} is damaged or was not written by torch.save ({reason})") from None


def _check_archive(path: Path) -> None:
    """Refuses TorchScript, compressed zip files (which may expand to terabytes) and damaged ones.

    torch itself does not verify checksums.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            if any(name.endswith("/constants.pkl") for name in file.namelist()):
                raise UserError(
                    f"{path} is TorchScript, a program, not a state_dict; if you trust it, convert it with "
                    f"torch.save(torch.jit.load({str(path)!r}).state_dict(), FILE)"
                )
            if sum(entry.file_size for entry in file.infolist()) > path.stat().st_size:
                raise UserError(
                    f"{path} is compressed, unlike files of torch.save; load it yourself and torch.save it again"
                )
            bad = file.testzip()
    except UserError:
        raise
    except Exception as error:  # zipfile raises many types for damaged archives
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is damaged or was not written by torch.save ({reason})") from None
    if bad is not None:
        raise UserError(f"{path} is damaged: checksum mismatch of {bad}; get it again")
