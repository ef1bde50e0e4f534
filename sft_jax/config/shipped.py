"""Recipes and converters: beside the package in a checkout, in it where a wheel was installed."""

import re
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "_shipped"

# How a user calls the converter.
CONVERTER = "sft-jax convert" if _INSTALLED.is_dir() else "python convert/resnet_to_flax.py"


def install_command(extras: str = "") -> str:
    """What a user types to install the program, with `extras`, as "prepare" or "convert,onnx"."""
    what = "sft-jax" if _INSTALLED.is_dir() else "."
    flag = "" if _INSTALLED.is_dir() else "-e "
    return f"pip install {flag}'{what}[{extras}]'" if extras else f"pip install {flag}{what}"


def shipped(folder: str) -> Path:
    """The folder "configs" or "convert"."""
    return (_INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent) / folder


def recipe_file(name: str) -> Path:
    """The recipe that `name` means: the file of that path, else one of ours, as "cifar10"; it may not exist."""
    path, ours = Path(name), shipped("configs") / f"{name}.py"
    # Of a name that is also a file's but for its suffix it is not clear which one is meant.
    taken = path.is_file() or Path(f"{name}.py").is_file()
    return ours if not taken and re.fullmatch(r"\w+", name) and ours.is_file() else path
