"""Converted weights: one safetensors file, checked key by key before a network gets them."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from sft_jax.errors import UserError

FORMAT = "sft-jax 1"
HEAD = "fc."


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters and batch statistics of a trained network.

    Attributes:
      arrays: float32, under the keys of `sft_jax.models.Functional`.
      arch: the network's torchvision name.
      class_names: of the head's outputs, None where they are not known.
      metadata: where they come from.
    """

    arrays: dict[str, np.ndarray]
    arch: str
    class_names: tuple[str, ...] | None
    metadata: dict[str, str]


def save_weights(path: Path, weights: Weights) -> None:
    """Writes a `.safetensors` file, whole or not at all."""
    facts = {"format": FORMAT, "arch": weights.arch, "class_names": json.dumps(weights.class_names)}
    arrays = {key: np.ascontiguousarray(array) for key, array in weights.arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    safetensors.numpy.save_file(arrays, temporary, metadata=weights.metadata | facts)
    os.replace(temporary, path)


def load_weights(path: Path) -> Weights:
    """Reads what `save_weights` wrote. Raises UserError where there is no such file or it is something else."""
    convert = f"python convert/resnet_to_flax.py --output {path}"
    if not path.is_file():
        raise UserError(f"no weights at {path}; make them with: {convert}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            facts = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()} if facts.get("format") == FORMAT else {}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}); make it anew with: {convert}") from None
    if facts.get("format") != FORMAT:
        raise UserError(
            f"{path} was not written by convert/resnet_to_flax.py of this version; convert it with: "
            f"python convert/resnet_to_flax.py --state-dict {path} --output weights/NAME.safetensors"
        )
    names = json.loads(facts["class_names"])
    return Weights(arrays, facts["arch"], tuple(names) if names else None, dict(facts))


def keeps_head(old: tuple[str, ...] | None, new: tuple[str, ...]) -> bool:
    """Whether a head for the classes `old` (None: not known) serves the classes `new`: only where they are the same."""
    return old == new


def initialise(
    params: Mapping[str, Any],
    batch_stats: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    *,
    source: str,
    keep_head: bool,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Puts `arrays` in the place of a fresh network's.

    Args:
      params: of the fresh network; only the head's entries need to be arrays, of the others shapes and dtypes are used.
      batch_stats: likewise.
      arrays: parameters and batch statistics together.
      source: where they come from, for the message.
      keep_head: whether the head is taken over too; otherwise the fresh one stays, and theirs is ignored.

    Returns:
      params and batch statistics.

    Raises:
      UserError: keys, shapes or dtypes are not those of the network; lists all of them.
    """
    fresh = {**params, **batch_stats}
    wanted = {key: leaf for key, leaf in fresh.items() if keep_head or not key.startswith(HEAD)}
    given = {key: array for key, array in arrays.items() if keep_head or not key.startswith(HEAD)}
    problems = [f"{key} is missing" for key in sorted(wanted.keys() - given.keys())]
    problems += [f"{key} is unknown" for key in sorted(given.keys() - wanted.keys())]
    for key in sorted(wanted.keys() & given.keys()):
        found, leaf = given[key], wanted[key]
        if tuple(found.shape) != tuple(leaf.shape) or found.dtype != leaf.dtype:
            problems.append(f"{key} is {found.dtype}{list(found.shape)}, not {leaf.dtype}{list(leaf.shape)}")
    if problems:
        raise UserError(f"the weights of {source} do not fit the network: {'; '.join(problems)}")
    merged = fresh | given
    return {key: merged[key] for key in params}, {key: merged[key] for key in batch_stats}
