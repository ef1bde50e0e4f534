"""Checks in seconds whether a config's data and weights exist or can be obtained."""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

from sft_jax import data
from sft_jax.config.shipped import CONVERTER, install_command
from sft_jax.data.sources.tfds import reachable
from sft_jax.doctor.finding import MISSING, OK, WARN, Finding
from sft_jax.errors import UserError
from sft_jax.training.start import load_init

PREPARE, CONVERT = install_command("prepare"), install_command("convert")
# The host of torchvision's weights.
WEIGHTS_HOST = "download.pytorch.org"


def check_data(config: ConfigDict) -> Finding:
    """Checks the images that `config.data` names."""
    try:
        here, where = data.check_source(config.data)
    except UserError as error:
        text = str(error)
        return Finding("data", MISSING, text, (PREPARE,) if PREPARE in text else ())
    return Finding("data", OK if here else WARN, f"{config.data.source}: {where}")


def check_weights(config: ConfigDict) -> Finding:
    """Checks the weights that `config.init` names."""
    path = Path(config.init)
    if config.init != "scratch" and path.suffix == ".safetensors" and not path.exists():
        return _to_convert(path, config.model.name)
    try:
        weights = load_init(config)
    except UserError as error:
        return Finding("weights", MISSING, str(error))
    if weights is None:
        return Finding("weights", OK, "random (init=scratch)")
    classes = "unknown classes" if weights.class_names is None else f"{len(weights.class_names)} classes"
    return Finding("weights", OK, f"{config.init}: {weights.arch}, {classes}")


def _to_convert(path: Path, arch: str) -> Finding:
    command = f"{CONVERTER} --arch {arch} --output {path}"
    torch = all(map(importlib.util.find_spec, ("torch", "torchvision")))
    text = f"{path} does not exist yet; create it by converting torchvision's weights"
    if not reachable(WEIGHTS_HOST):
        text += f", but {WEIGHTS_HOST} is unreachable: download the .pth file elsewhere"
        command += " --state-dict FILE.pth"
    return Finding("weights", MISSING, text, (command,) if torch else (CONVERT, command))
