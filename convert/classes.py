"""Class names of a network's outputs: given by the user, recorded in its file, or ImageNet's."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torchvision

from sft_jax.errors import UserError


def imagenet() -> tuple[str, ...]:
    """Returns torchvision's names of the 1,000 ImageNet classes."""
    return tuple(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def parse(text: str) -> tuple[str, ...]:
    """Parses `--classes`: a text file with one name per line, a JSON file, or comma-separated names.

    A JSON file contains a list, names by label, labels by name, or a Hugging Face `config.json`.

    Raises:
      UserError: the file does not exist, or has no valid names.
    """
    path = Path(text).expanduser()
    if path.is_file():
        try:
            content = path.read_text(encoding="utf-8-sig")
            names = _of_json(json.loads(content)) if path.suffix == ".json" else _stripped(content.strip().splitlines())
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"--classes {text} cannot be read: {error}") from None
    elif "," in text:
        names = _stripped(text.split(","))
    else:
        raise UserError(f"--classes {text}: no such file; separate names with commas: --classes ant,bee")
    if not names or not all(names):
        raise UserError(f"--classes {text}: a name is empty")
    return names


def choose(
    given: tuple[str, ...] | None, recorded: tuple[str, ...] | None, dataset: str | None, outputs: int, source: str
) -> tuple[tuple[str, ...] | None, list[str]]:
    """Chooses the class names, None if unknown; also returns notices about their origin.

    Args:
      given: names given by the user.
      recorded: names recorded in the file.
      dataset: "imagenet", "none", or None for ImageNet's names if there are 1,000 outputs.
      outputs: number of classes; 0 without a head.
      source: name of the file in messages.

    Raises:
      UserError: the number of names differs from the number of outputs.
    """
    if given is None and dataset == "imagenet":
        given = imagenet()
    if given is not None:
        if len(given) != outputs:
            what = f"{outputs:,} outputs" if outputs else "no head"
            raise UserError(f"{len(given):,} class names given, but {source} has {what}")
        return given, []
    if recorded is not None and len(recorded) == outputs:
        return recorded, []
    notices = [f"ignoring its {len(recorded):,} class names, as it has {outputs:,} outputs"] if recorded else []
    if outputs == 1000 and dataset is None:
        return imagenet(), [*notices, "assuming ImageNet's classes for 1,000 outputs; if not, use --dataset none"]
    return None, notices


def _of_json(content: Any) -> tuple[str, ...]:
    if isinstance(content, Mapping) and isinstance(content.get("id2label"), Mapping):
        content = content["id2label"]
    if isinstance(content, Mapping) and all(isinstance(label, int) for label in content.values()):
        content = {label: name for name, label in content.items()}
    if isinstance(content, Mapping):
        labels = sorted(content, key=int)
        if list(map(int, labels)) != list(range(len(labels))):
            raise ValueError(f"the labels are not 0 to {len(labels) - 1}")
        content = [content[label] for label in labels]
    # Keras's imagenet_class_index.json has ["n01440764", "tench"] instead of a name.
    return _stripped(str(name[-1] if isinstance(name, list) else name) for name in content)


def _stripped(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name.strip() for name in names)
