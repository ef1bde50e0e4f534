"""The configuration: every key with its default, and how recipes and the command line set it."""

import dataclasses
import difflib
import math
import runpy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sft_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Key:
    """One setting: its default, the type of its values, what it means, and what its values must satisfy."""

    default: Any
    kind: type
    doc: str
    check: Callable[[Any], bool] = lambda value: True
    rule: str = ""
    optional: bool = False

    def parse(self, text: str) -> Any:
        """The value that `text`, from the command line, stands for. Raises ValueError."""
        if self.optional and text.lower() == "none":
            return None
        if self.kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if self.kind is tuple:
            return tuple(float(part) for part in text.strip("()[] ").split(",") if part.strip())
        return self.kind(text)

    def coerce(self, value: Any) -> Any:
        """`value` as the key's type where nothing is lost by it, as 1 for a float. Raises TypeError, ValueError."""
        if value is None and self.optional:
            return None
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if self.kind is tuple and isinstance(value, list | tuple):
            return tuple(float(part) for part in value)
        if type(value) is not self.kind:
            raise ValueError(value)
        return value


def _one_of(*names: str) -> dict[str, Any]:
    return {"check": lambda value: value in names, "rule": f"one of {', '.join(names)}"}


_POSITIVE: dict[str, Any] = {"check": lambda value: value is None or 0 < value < math.inf, "rule": "greater than 0"}
_NOT_NEGATIVE: dict[str, Any] = {"check": lambda value: 0 <= value < math.inf, "rule": "0 or more"}
_RGB: dict[str, Any] = {
    "check": lambda value: len(value) == 3 and all(map(math.isfinite, value)),
    "rule": "three numbers, one a channel",
}
_DEVIATIONS: dict[str, Any] = {
    "check": lambda value: len(value) == 3 and all(0 < deviation < math.inf for deviation in value),
    "rule": "three numbers greater than 0, one a channel",
}

KEYS: dict[str, Key] = {
    "seed": Key(0, int, "Of the new weights, the order of the images and their augmentation.", **_NOT_NEGATIVE),
    "epochs": Key(100, int, "Passes over the training images.", **_POSITIVE),
    "batch_size": Key(100, int, "Images a step, over all devices together.", **_POSITIVE),
    "precision": Key(
        "float32", str, "Of activations and products; weights stay float32.", **_one_of("float32", "bfloat16")
    ),
    "save_minutes": Key(10.0, float, "A long epoch is saved this often; every epoch's end is.", **_POSITIVE),
    "compare_with_scratch": Key(
        False, bool, "Afterwards train the same recipe from random weights and report its test accuracy beside."
    ),
    "model.name": Key("resnet18", str, "The network, by its torchvision name."),
    "model.stem": Key(
        "imagenet", str, "cifar: stride 1 and no max-pool, for small images.", **_one_of("imagenet", "cifar")
    ),
    "init": Key(
        "weights/resnet18.safetensors",
        str,
        "Converted weights (.safetensors), the folder of a run to fine-tune further, or scratch.",
    ),
    "data.source": Key("tfds:cifar10", str, "tfds:NAME, folder:PATH, digits or digits:FIRST-LAST."),
    "data.dir": Key(None, str, "Where tfds keeps its data sets; none: its own default.", optional=True),
    "data.download": Key(True, bool, "Whether tfds may download and prepare a data set that is not there."),
    "data.train": Key("train[:45000]", str, "The split to train on, as tfds writes it."),
    "data.validation": Key("train[45000:]", str, "The split that chooses the best checkpoint."),
    "data.test": Key("test", str, "The split that is scored once, at the end."),
    "data.per_class": Key(
        None, int, "Train on this many images of each class only (few-shot).", optional=True, **_POSITIVE
    ),
    "data.size": Key(32, int, "Side in pixels of what the network sees; images are resized.", **_POSITIVE),
    "data.mean": Key((0.5, 0.5, 0.5), tuple, "Subtracted from each channel, on the scale 0..1.", **_RGB),
    "data.std": Key((0.5, 0.5, 0.5), tuple, "Each channel is divided by it, on the scale 0..1.", **_DEVIATIONS),
    "data.crop_padding": Key(
        4, int, "Zeros around an image before a random crop, in pixels; 0: no crop.", **_NOT_NEGATIVE
    ),
    "data.flip": Key(True, bool, "Mirror every second training image, at random."),
    "optimizer.name": Key("sgd", str, "SGD with momentum as torch defines it.", **_one_of("sgd")),
    "optimizer.learning_rate": Key(1e-3, float, "The peak of the schedule.", **_NOT_NEGATIVE),
    "optimizer.momentum": Key(
        0.9, float, "Of SGD.", check=lambda value: 0 <= value < 1, rule="at least 0 and less than 1"
    ),
    "optimizer.weight_decay": Key(
        0.0, float, "Times the weights, added to the gradient (L2, as torch).", **_NOT_NEGATIVE
    ),
    "optimizer.schedule": Key("constant", str, "cosine: falls to 0 at the end.", **_one_of("constant", "cosine")),
    "limit_train_examples": Key(None, int, "Train on this many images only.", optional=True, **_POSITIVE),
    "limit_eval_examples": Key(None, int, "Evaluate on this many images of a split only.", optional=True, **_POSITIVE),
}


def default_config() -> ConfigDict:
    """A configuration with every key at its default, for a recipe to change."""
    return _nested({name: key.default for name, key in KEYS.items()})


def load_config(recipe: str, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """Reads a recipe and applies overrides.

    Args:
      recipe: path of a Python file with `get_config(arg="")`, and optionally ":ARG" after it.
      overrides: (dotted key, text) pairs, as `--config.KEY=VALUE` gives them.

    Returns:
      The complete, checked, locked configuration.

    Raises:
      UserError: no such file, unknown keys (with the nearest known one), values of a wrong type or range.
    """
    path, _, arg = recipe.partition(":")
    if not Path(path).is_file():
        raise UserError(f"no config file {path!r}; recipes are Python files such as configs/cifar10.py")
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        raise UserError(f"{path} has no get_config(arg=''); see configs/cifar10.py for an example")
    values = flatten(get_config(arg))
    values.update((name, _parse(name, text)) for name, text in overrides)
    return complete(values)


def complete(values: Mapping[str, Any]) -> ConfigDict:
    """The locked configuration of dotted keys `values`; the others have their defaults. Raises UserError."""
    checked = {name: key.default for name, key in KEYS.items()}
    for name, value in values.items():
        key = _key(name)
        try:
            checked[name] = key.coerce(value)
        except (TypeError, ValueError):
            raise UserError(f"config.{name}={value!r} is not {_KIND_WORDS[key.kind]}") from None
        if not key.check(checked[name]):
            raise UserError(f"config.{name}={value!r} must be {key.rule}")
    return _nested(checked).lock()


def flatten(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys -> values."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            flat.update({f"{name}.{inner}": leaf for inner, leaf in flatten(value).items()})
        else:
            flat[name] = value
    return flat


def config_name(recipe: str) -> str:
    """The recipe's name for a run's folder: configs/digits.py:source -> digits_source."""
    path, _, arg = recipe.partition(":")
    return "_".join(part for part in (Path(path).stem, arg) if part)


_KIND_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    tuple: "a list of numbers such as 0.5,0.5,0.5",
}


def _key(name: str) -> Key:
    if name not in KEYS:
        near = difflib.get_close_matches(name, KEYS, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown config key {name!r}; the nearest one is {near!r}")
    return KEYS[name]


def _parse(name: str, text: str) -> Any:
    key = _key(name)
    try:
        return key.parse(text)
    except (KeyError, ValueError):
        raise UserError(f"config.{name}={text!r} is not {_KIND_WORDS[key.kind]}") from None


def _nested(values: Mapping[str, Any]) -> ConfigDict:
    config = ConfigDict()
    for name, value in values.items():
        *groups, leaf = name.split(".")
        node = config
        for group in groups:
            if group not in node:
                node[group] = ConfigDict()
            node = node[group]
        node[leaf] = value
    return config
