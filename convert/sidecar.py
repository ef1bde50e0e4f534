"""Class names and preprocessing from the JSON files that a hub keeps beside the weights.

timm's `config.json` has "architecture" and "pretrained_cfg"; that of transformers has "id2label", and its
`preprocessor_config.json` has the sizes, the mean and the standard deviation.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.facts import Facts
from sft_jax.errors import UserError
from sft_jax.models.catalogue import published

# Pillow's numbers of its filters.
RESAMPLE = {2: "bilinear", 3: "bicubic"}
# From this size on ConvNextImageProcessor does not crop.
UNCROPPED = 384


def beside(file: Path, arch: str) -> Facts:
    """Returns what the files beside the weights `file` say; the notices tell where it comes from.

    Raises:
      UserError: they are timm's weights of another network than `arch`. Its names do not tell: networks called `tf_`
        have the same ones and other numbers.
    """
    config = config_beside(file)
    theirs = config.get("architecture")
    if isinstance(theirs, str) and isinstance(config.get("pretrained_cfg"), dict):
        if theirs.startswith("tf_") != arch.startswith("tf_"):
            raise UserError(f"{file} contains a {theirs}, as config.json beside it says: use --arch {theirs}")
        names, preprocess = _names(config.get("label_names")), _of_timm(config["pretrained_cfg"])
        where = "config.json"
    else:
        names = _names(config.get("id2label"))
        preprocess = _of_transformers(_read(file.with_name("preprocessor_config.json")))
        where = "config.json" if preprocess is None else "preprocessor_config.json"
    parts = [what for what, known in (("class names", names), ("preprocessing", preprocess)) if known is not None]
    notices = (f"{' and '.join(parts)} from {where} beside it",) if parts else ()
    return Facts(names, preprocess, notices, _licence(config, arch))


def config_beside(file: Path) -> dict[str, Any]:
    """Returns the content of the `config.json` beside the weights `file`; empty if there is none."""
    return _read(file.with_name("config.json"))


def _licence(config: Mapping[str, Any], arch: str) -> str | None:
    """Returns the licence of timm's weights, by their tag if it is known, otherwise as recorded; None without one."""
    cfg = config.get("pretrained_cfg")
    if not isinstance(cfg, dict):
        return None
    tags = (cfg.get("tag"), f"{config.get('architecture')}.{cfg.get('tag')}")
    known = (entry.licence for entry in published(arch) if entry.library == "timm" and entry.name in tags)
    recorded = cfg.get("license")
    return next(known, None) or (recorded if isinstance(recorded, str) else None)


def _read(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; empty if there is none, because the file may be another program's."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _names(labels: Any) -> tuple[str, ...] | None:
    """Returns the class names in a list or by number; None for the names LABEL_0, ... of a model without any."""
    if isinstance(labels, Mapping) and all(str(label).isdecimal() for label in labels):
        numbered = {int(label): name for label, name in labels.items()}
        labels = [numbered.get(label) for label in range(len(numbered))]
    if not isinstance(labels, list) or not labels or not all(isinstance(name, str) for name in labels):
        return None
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in labels) else tuple(labels)


def _of_timm(cfg: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the preprocessing with which timm evaluates the weights: at the test size, if they have one."""
    try:
        size = int((cfg.get("test_input_size") or cfg["input_size"])[-1])
        crop = float(cfg.get("test_crop_pct") or cfg["crop_pct"])
        squash = cfg.get("crop_mode") == "squash"
        return {
            "size": size,
            "resize": size if squash else math.floor(size / crop),
            "interpolation": _supported(cfg["interpolation"]),
            "fit": "squash" if squash else "crop",
            "mean": [float(value) for value in cfg["mean"]],
            "std": [float(value) for value in cfg["std"]],
        }
    except (KeyError, TypeError, ValueError, IndexError):
        return None


def _of_transformers(cfg: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the preprocessing of transformers' image processors of ViT, BiT (DINOv2's) and ConvNeXt."""
    try:
        size = (
            cfg["size"] if isinstance(cfg["size"], Mapping) else {"height": cfg["size"], "shortest_edge": cfg["size"]}
        )
        common = {
            "interpolation": _supported(RESAMPLE[cfg["resample"]]),
            "mean": [float(value) for value in cfg["image_mean"]],
            "std": [float(value) for value in cfg["image_std"]],
        }
        if "crop_pct" in cfg and size["shortest_edge"] < UNCROPPED:
            side = int(size["shortest_edge"])
            return {"size": side, "resize": int(side / cfg["crop_pct"]), "fit": "crop"} | common
        if cfg.get("do_center_crop") and "crop_pct" not in cfg:
            crop = cfg["crop_size"]["height"] if isinstance(cfg["crop_size"], Mapping) else cfg["crop_size"]
            return {"size": int(crop), "resize": int(size["shortest_edge"]), "fit": "crop"} | common
        side = int(size["shortest_edge"] if "crop_pct" in cfg else size["height"])
        return {"size": side, "resize": side, "fit": "squash"} | common
    except (KeyError, TypeError, ValueError):
        return None


def _supported(interpolation: str) -> str:
    if interpolation not in RESAMPLE.values():
        raise ValueError(interpolation)
    return interpolation
