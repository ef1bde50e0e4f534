"""Whether a configuration's data and weights are there or can be had, in seconds."""

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
# Where torchvision's weights come from.
WEIGHTS_HOST = "download.pytorch.org"


def check_data(config: ConfigDict) -> Finding:
    """The images that `config.data` names."""
    try:
        here, where = data.check_source(config.data)
    except UserError as error:
        text = str(error)
        return Finding("data", MISSING, text, (PREPARE,) if PREPARE in text else ())
    return Finding("data", OK if here else WARN, f"{config.data.source}: {where}")


def check_weights(config: ConfigDict) -> Finding:
    """What `config.init` names."""
    path = Path(config.init)
    if config.init != "scratch" and path.suffix == ".safetensors" and not path.exists():
        return _to_convert(path, config.model.name)
    try:
        found = load_init(config)
    except UserError as error:
        return Finding("weights", MISSING, str(error))
    if found is None:
        return Finding("weights", OK, "random: init=scratch needs none")
    classes = "classes not known" if found.class_names is None else f"{len(found.class_names)} classes"
    return Finding("weights", OK, f"{config.init}: {found.arch}, {classes}")


def _to_convert(path: Path, arch: str) -> Finding:
    command = f"{CONVERTER} --arch {arch} --output {path}"
    torch = all(map(importlib.util.find_spec, ("torch", "torchvision")))
    text = f"there is no {path} yet; converting torchvision's makes it"
    if not reachable(WEIGHTS_HOST):
        text += f", but {WEIGHTS_HOST} cannot be reached: bring a file of theirs"
        command += " --state-dict FILE.pth"
    return Finding("weights", MISSING, text, (command,) if torch else (CONVERT, command))
