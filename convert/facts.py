"""What a converted file says of its network beside the weights: names of the classes, and what images go through.

The latter is the key `preprocess` of its metadata, JSON:
{"size": 224, "resize": 256, "interpolation": "bilinear", "fit": "crop", "mean": [r, g, b], "std": [r, g, b]}, and what
else a run recorded of `sft_jax.data.images.square.Square`.
The shorter side is brought to `resize` pixels, then the middle `size` x `size` are cut out; mean and std are on the
scale 0..1.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torchvision

from convert import classes
from convert.fit import Fit
from sft_jax.data.preprocess import Preprocess
from sft_jax.errors import UserError

KEYS = ("size", "resize", "interpolation", "fit", "mean", "std")


class Facts(NamedTuple):
    """Each None where it is not known; `notices` say what was guessed."""

    class_names: tuple[str, ...] | None
    preprocess: dict[str, Any] | None
    notices: tuple[str, ...] = ()


def of_weights(arch: str, name: str) -> Facts:
    """Those of torchvision's own weights `name` for `arch`."""
    weights = torchvision.models.get_model_weights(arch)[name]
    return Facts(tuple(weights.meta["categories"]), _of_transforms(weights.transforms()))


def _of_transforms(transforms: Any) -> dict[str, Any]:
    return {
        "size": transforms.crop_size[0],
        "resize": transforms.resize_size[0],
        "interpolation": transforms.interpolation.value,
        "fit": "crop",
        "mean": list(transforms.mean),
        "std": list(transforms.std),
    }


def of_run(class_names: tuple[str, ...], preprocess: Preprocess) -> Facts:
    """Those of a run and its evaluation."""
    values = preprocess.to_json() | {"resize": preprocess.resize or preprocess.size}
    # Of ranges of gray values and the like only what is not usual.
    return Facts(class_names, {name: value for name, value in values.items() if name in KEYS or value})


def recorded(class_names: tuple[str, ...] | None, metadata: Mapping[str, str]) -> Facts:
    """Those in a file of this metadata."""
    try:
        preprocess = json.loads(metadata.get("preprocess", "null"))
    except ValueError:
        preprocess = None
    known = isinstance(preprocess, dict) and preprocess.keys() >= set(KEYS)
    return Facts(class_names, preprocess if known else None)


def completed(known: Facts, fitted: Fit, given: Mapping[str, Any], source: str) -> Facts:
    """`known` with what the user says, and else with the likeliest guess.

    Args:
      known: see above.
      fitted: the network.
      given: flags as typed: classes, dataset, size, mean, std; each may be missing.
      source: of the messages.

    Raises:
      UserError: what is given does not fit the network, cannot be read, or is too little.
    """
    names = classes.parse(given["classes"]) if "classes" in given else None
    class_names, notices = classes.choose(names, known.class_names, given.get("dataset"), fitted.classes, source)
    preprocess, more = _preprocess(known.preprocess, fitted, given, source)
    return Facts(class_names, preprocess, (*notices, *more))


def _preprocess(known, fitted: Fit, given: Mapping[str, Any], source: str) -> tuple[dict[str, Any] | None, list[str]]:
    said: dict[str, Any] = {name: _channels(f"--{name}", given[name]) for name in ("mean", "std") if name in given}
    if "size" in given:
        said |= {"size": _positive(given["size"]), "resize": given["size"]}
    if known is not None:
        return known | said, []
    wanted = ", ".join(f"--{name}" for name in ("size", "mean", "std") if name not in said)
    for_imagenet = fitted.stem == "imagenet" and fitted.module.conv1.in_channels == 3
    if for_imagenet:
        usual = torchvision.models.get_model_weights(fitted.arch)["IMAGENET1K_V1"].transforms()
        guess = "its images were taken to be prepared as for torchvision's IMAGENET1K_V1; where not, say"
        return _of_transforms(usual) | said, [f"{guess} {wanted}"] if wanted else []
    if not wanted:
        return {"interpolation": "bilinear", "fit": "crop"} | said, []
    if said:
        raise UserError(f"{source} needs {wanted} too: it has not the form of networks for ImageNet")
    return None, [f"how its images are prepared is not known; to predict with it, convert it with {wanted}"]


def _positive(size: int) -> int:
    if size < 1:
        raise UserError(f"--size {size} must be 1 or more")
    return size


def _channels(flag: str, text: str) -> list[float]:
    """Three numbers, "0.5,0.5,0.5", or one for all channels."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3) or not all(math.isfinite(value) and value >= 0 for value in values):
        raise UserError(f"{flag} {text} must be one number or three, as 0.485,0.456,0.406, on the scale 0..1")
    if flag == "--std" and not all(values):
        raise UserError(f"{flag} {text} must not be 0")
    return values * 3 if len(values) == 1 else values
