"""Locates recipes and converters: next to the package in a checkout, inside it if installed from a wheel."""

import re
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "_shipped"

# The command that runs the converter.
CONVERTER = "sft-jax convert" if _INSTALLED.is_dir() else "python convert/resnet_to_flax.py"


def install_command(extras: str = "") -> str:
    """Returns the command that installs the program with `extras`, e.g. "prepare" or "convert,onnx"."""
    what = "sft-jax" if _INSTALLED.is_dir() else "."
    flag = "" if _INSTALLED.is_dir() else "-e "
    return f"pip install {flag}'{what}[{extras}]'" if extras else f"pip install {flag}{what}"


def shipped(folder: str) -> Path:
    """Returns the path of the folder "configs" or "convert"."""
    return (_INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent) / folder


def recipe_file(name: str) -> Path:
    """Returns the file at path `name`, or else the built-in recipe of that name, e.g. "cifar10"; it may not exist."""
    path, ours = Path(name), shipped("configs") / f"{name}.py"
    # The name is ambiguous if there is also a file of that name, with or without suffix.
    taken = path.is_file() or Path(f"{name}.py").is_file()
    return ours if not taken and re.fullmatch(r"\w+", name) and ours.is_file() else path
