"""Metadata of a converted file: class names, preprocessing, the licence of the weights, and their task.

Preprocessing is stored as JSON under the metadata key `preprocess`:
{"size": 224, "resize": 256, "interpolation": "bilinear", "fit": "crop", "mean": [r, g, b], "std": [r, g, b]}, plus any
further fields of `sft_jax.data.images.square.Square` that a run recorded.
The shorter side is resized to `resize` pixels, then the centre `size` x `size` is cropped; mean and std are for pixels
in 0..1.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torchvision

from convert import classes
from convert.families import reference_of
from convert.fit import Fit
from sft_jax.data.preprocess import Preprocess
from sft_jax.errors import UserError
from sft_jax.models import architecture, catalogue
from sft_jax.models.weights import Weights

# The shorter side at which torchvision scores its networks for segmentation.
PIXELS = 520
KEYS = ("size", "resize", "interpolation", "fit", "mean", "std")


class Facts(NamedTuple):
    """Class names, preprocessing and licence, None if unknown; `notices` tell what was guessed.

    `task` is metadata: the name of the task, and what it needs besides the weights, see `Weights`; the tokenizer of a
    network of texts.
    """

    class_names: tuple[str, ...] | None
    preprocess: dict[str, Any] | None
    notices: tuple[str, ...] = ()
    licence: str | None = None
    task: Mapping[str, str] = MappingProxyType({})


def of_weights(arch: str, name: str) -> Facts:
    """Returns the metadata of torchvision's own weights `name` for `arch`."""
    weights = torchvision.models.get_model_weights(arch)[name]
    licence = next((entry.licence for entry in catalogue.published(arch) if entry.name == name), None)
    return Facts(tuple(weights.meta["categories"]), _of_transforms(weights.transforms()), licence=licence)


def _of_transforms(transforms: Any) -> dict[str, Any]:
    if not hasattr(transforms, "crop_size"):
        return _for_pixels(transforms.resize_size[0], transforms.mean, transforms.std)
    return {
        "size": transforms.crop_size[0],
        "resize": transforms.resize_size[0],
        "interpolation": transforms.interpolation.value,
        "fit": "crop",
        "mean": list(transforms.mean),
        "std": list(transforms.std),
    }


def _for_pixels(size: int, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Returns the preprocessing of whole pictures, of which every pixel gets an answer."""
    sides = {"size": size, "resize": size, "interpolation": "bilinear", "fit": "pad"}
    return sides | {"mean": list(mean), "std": list(std)}


def of_run(weights: Weights, preprocess: Preprocess) -> Facts:
    """Returns the metadata of a run's weights, with its preprocessing for evaluation."""
    values = preprocess.to_json() | {"resize": preprocess.resize or preprocess.size}
    # Further fields, such as gray value ranges, only if they are not the default.
    known = {name: value for name, value in values.items() if name in KEYS or value}
    licence = weights.metadata.get("licence")
    return Facts(weights.class_names, known, licence=licence, task=_task(weights.metadata))


def _task(metadata: Mapping[str, str]) -> dict[str, str]:
    facts = {name: metadata[name] for name in ("task", "learnt", "tokenizer") if name in metadata}
    learnt = json.loads(facts.get("learnt", "{}"))
    if "tokenizer" in learnt:  # a run's
        facts |= {"tokenizer": learnt.pop("tokenizer"), "learnt": json.dumps(learnt)}
    return facts


def recorded(class_names: tuple[str, ...] | None, metadata: Mapping[str, str]) -> Facts:
    """Returns the metadata recorded in a file."""
    try:
        preprocess = json.loads(metadata.get("preprocess", "null"))
    except ValueError:
        preprocess = None
    known = isinstance(preprocess, dict) and preprocess.keys() >= set(KEYS)
    licence = metadata.get("licence")
    return Facts(class_names, preprocess if known else None, licence=licence, task=_task(metadata))


def filled(known: Facts, other: Facts) -> Facts:
    """Returns `known` with what it lacks from `other`, and the notices of both if anything was taken."""
    names, preprocess = known.class_names or other.class_names, known.preprocess or other.preprocess
    taken = (names, preprocess) != (known.class_names, known.preprocess)
    notices = known.notices + (other.notices if taken else ())
    return Facts(names, preprocess, notices, known.licence or other.licence, known.task)


def completed(known: Facts, fitted: Fit, given: Mapping[str, Any], source: str) -> Facts:
    """Completes `known` with the user's flags, and otherwise with the most likely guess.

    Args:
      known: the metadata recorded in the file.
      fitted: the network.
      given: flags as typed: classes, dataset, size, mean, std, licence; each may be missing.
      source: name of the file in messages.

    Raises:
      UserError: the flags do not fit the network, are invalid, or are not enough.
    """
    names = classes.parse(given["classes"]) if "classes" in given else None
    class_names, notices = classes.choose(names, known.class_names, given.get("dataset"), fitted.classes, source)
    preprocess, more = _preprocess(known.preprocess, fitted, given, source)
    licence = given.get("licence", known.licence)
    task = dict(known.task) or ({"task": "segmentation"} if reference_of(fitted.arch).dense else {})
    return Facts(class_names, preprocess, (*known.notices, *notices, *more), licence, task)


def _preprocess(known, fitted: Fit, given: Mapping[str, Any], source: str) -> tuple[dict[str, Any] | None, list[str]]:
    if architecture(fitted.arch).texts is not None:
        for name in ("size", "mean", "std"):
            if name in given:
                raise UserError(f"--{name} {given[name]} has no meaning for {fitted.arch}, which takes texts")
        return None, []
    flags: dict[str, Any] = {name: _channels(f"--{name}", given[name]) for name in ("mean", "std") if name in given}
    if "size" in given:
        flags |= {"size": _positive(given["size"]), "resize": given["size"]}
        architecture(fitted.arch).check_size(given["size"], "--size")
    if known is not None:
        return known | flags, []
    wanted = ", ".join(f"--{name}" for name in ("size", "mean", "std") if name not in flags)
    channels = reference_of(fitted.arch).input_channels(fitted.module)
    if fitted.stem == "imagenet" and channels == 3:
        known_as = architecture(fitted.arch)
        guess = f"assuming the preprocessing of {known_as.pretrained_by}; if that is wrong, use"
        if known_as.dense:
            guess = f"assuming the mean and std of {known_as.pretrained_by} and pictures padded to {PIXELS} px; if that"
            usual = _for_pixels(PIXELS, known_as.pretrained.mean, known_as.pretrained.std)
            return usual | flags, [f"{guess} is wrong, use {wanted}"] if wanted else []
        # Lists, as JSON has them.
        usual = json.loads(json.dumps(dataclasses.asdict(known_as.pretrained))) | {"fit": "crop"}
        own = known_as.size_of(fitted.arrays)
        if own not in (None, usual["size"]):
            usual |= {"size": own, "resize": own}
        return {name: usual[name] for name in KEYS} | flags, [f"{guess} {wanted}"] if wanted else []
    if not wanted:
        return {"interpolation": "bilinear", "fit": "crop"} | flags, []
    if flags:
        raise UserError(f"{source} needs {wanted} too: its stem is not ImageNet's, so they cannot be guessed")
    return None, [f"its preprocessing is unknown; to predict with it, convert it with {wanted}"]


def _positive(size: int) -> int:
    if size < 1:
        raise UserError(f"--size {size} must be 1 or more")
    return size


def _channels(flag: str, text: str) -> list[float]:
    """Parses three numbers, as in "0.5,0.5,0.5", or one for all channels."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3) or not all(math.isfinite(value) and value >= 0 for value in values):
        raise UserError(f"{flag} {text} must be one or three numbers, e.g. 0.485,0.456,0.406, for pixels in 0..1")
    if flag == "--std" and not all(values):
        raise UserError(f"{flag} {text} must not be 0")
    return values * 3 if len(values) == 1 else values
