"""`torch.load` that runs no code: of what a training script leaves beside the tensors only plain values are read."""

import collections
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from sft_jax.errors import UserError


class Ignored:
    """Stands for an object of another program. It keeps nothing and does nothing, whatever a pickle asks of it."""

    __slots__ = ()

    def __new__(cls, *_: Any) -> "Ignored":
        """Takes any arguments."""
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def _dictionary(*_: Any) -> dict:
    return collections.OrderedDict()


# What checkpoints hold beside tensors and plain values. None of it is imported or called: each name stands for
# `Ignored`, dictionaries for a dictionary.
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
    """What `torch.save` put into a file, with `Ignored` in the place of other programs' bookkeeping.

    Raises:
      UserError: a damaged file, one that is not torch.save's, or one with code in it.
    """
    _check_archive(path)
    try:
        with torch.serialization.safe_globals(STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True)
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


def _check_archive(path: Path) -> None:
    """Refuses TorchScript, and a zip file that is compressed, which may claim terabytes, or damaged: torch checks no
    checksums.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            if any(name.endswith("/constants.pkl") for name in file.namelist()):
                raise UserError(
                    f"{path} is TorchScript, a program and no state_dict; where you trust it, make one with "
                    f"torch.save(torch.jit.load({str(path)!r}).state_dict(), FILE)"
                )
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
