"""Converted weights: one safetensors file, checked key by key before a network gets them."""

import dataclasses
import difflib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from sft_jax.config.shipped import CONVERTER
from sft_jax.errors import UserError
from sft_jax.models import ARCHITECTURES, Network
from sft_jax.runtime.files import digest, write_bytes

FORMAT = "sft-jax 1"
# Lines of an error that lists what does not fit.
FEW = 5


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters and batch statistics of a trained network.

    Attributes:
      arrays: float32, under the keys of `sft_jax.models.Network`.
      arch: the network's name, of `ARCHITECTURES`.
      class_names: of the head's outputs, None where they are not known.
      metadata: where they come from; `convert/resnet_to_flax.py` lists its keys.
    """

    arrays: dict[str, np.ndarray]
    arch: str
    class_names: tuple[str, ...] | None
    metadata: dict[str, str]

    @property
    def stem(self) -> str:
        """The `model.stem` that they were trained with; where nobody recorded it, what their shapes say."""
        if "stem" in self.metadata:
            return self.metadata["stem"]
        known = ARCHITECTURES.get(self.arch)
        return "imagenet" if known is None else known.stem_of(self.arrays)

    @property
    def outputs(self) -> int | None:
        """The number of outputs of their head; None where they have none."""
        known = ARCHITECTURES.get(self.arch)
        bias = self.arrays.get(f"{known.head}.bias") if known is not None else None
        return None if bias is None else bias.shape[0]


def save_weights(path: Path, weights: Weights) -> None:
    """Writes a `.safetensors` file, whole or not at all. Raises UserError where it cannot be written."""
    facts = {"format": FORMAT, "arch": weights.arch, "class_names": json.dumps(weights.class_names)}
    arrays = {key: np.ascontiguousarray(array) for key, array in weights.arrays.items()}
    metadata = weights.metadata | facts
    metadata["digest"] = digest(arrays, metadata)
    # Not save_file, which makes a file that nobody else may read.
    write_bytes(path, safetensors.numpy.save(arrays, metadata=metadata))


def load_weights(path: Path) -> Weights:
    """Reads what `save_weights` wrote. Raises UserError where there is no such file or it is something else."""
    target = path.with_suffix(".safetensors")
    if not path.is_file():
        raise UserError(
            f"no weights at {path}; make them with: {CONVERTER} --output {target} "
            f"(and --arch NAME for another network than resnet18)"
        )
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path} is no .safetensors file; convert it first with: {CONVERTER} --state-dict {path} --output {target}"
        )
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            facts = file.metadata() or {}
            keys = set(file.keys())
            arrays = {key: file.get_tensor(key) for key in keys} if facts.get("format") == FORMAT else {}
    except (safetensors.SafetensorError, OSError, TypeError) as error:  # numpy has no bfloat16
        raise _damaged(path, str(error)) from None
    version = facts.get("format", "")
    if version.startswith(FORMAT.split()[0]) and version != FORMAT:
        raise UserError(f"{path} has the format {version!r}, this version of sft-jax reads {FORMAT!r}; convert it anew")
    if version != FORMAT:
        kind = "has torch's keys" if "conv1.weight" in keys else "is no converted file"
        raise UserError(
            f"{path} {kind}; convert it first with: "
            f"{CONVERTER} --state-dict {path} --output {path.with_suffix('.flax.safetensors')}"
        )
    # The first files of this format had no digest.
    expected = facts.pop("digest", None)
    if expected is not None and digest(arrays, facts) != expected:
        raise _damaged(path, "its contents are not what was written")
    try:
        arch, names = facts["arch"], json.loads(facts["class_names"])
        class_names = None if names is None else tuple(map(str, names))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"its metadata are: {error!r}") from None
    bad = [key for key, array in sorted(arrays.items()) if not np.isfinite(array).all()]
    if bad:
        raise UserError(f"{path} cannot be used: {', '.join(bad)} has values that are not finite")
    return Weights(arrays, arch, class_names, facts)


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged ({reason}); make it anew with: {CONVERTER} --output {path}")


def inherited_head(
    weights: Weights, names: tuple[str, ...], fresh: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], str]:
    """What a network for the classes `names` takes over of the head of `weights`.

    All of it where the classes are the same. Otherwise the rows of those classes that have exactly the same name on
    both sides, among fresh rows.

    Args:
      weights: of another network.
      names: of the outputs of the new head.
      fresh: the new head as drawn, its kernel [in, classes] and bias [classes].

    Returns:
      the head's arrays, none where nothing is taken over, and the rest of a sentence on what was.
    """
    old = weights.class_names or ()
    given = {key: array for key, array in weights.arrays.items() if key in fresh}
    fits = {key: array.shape for key, array in given.items()} == {key: leaf.shape for key, leaf in fresh.items()}
    if fits and old == names:
        return given, " with its own head"
    there, here = _positions(old), _positions(names)
    shared = here.keys() & there.keys()
    of_old = {key: (*leaf.shape[:-1], len(old)) for key, leaf in fresh.items()}
    if not shared or {key: array.shape for key, array in given.items()} != of_old:
        return {}, " with a new head"
    head = {key: np.array(leaf) for key, leaf in fresh.items()}
    for key, array in head.items():
        array[..., [here[name] for name in shared]] = given[key][..., [there[name] for name in shared]]
    new, dropped = ([name for name in some if name not in shared] for some in (names, old))
    said = f"; head: {len(shared)} of {len(names)} classes keep their rows"
    said += f", new: {some_of(new)}" if new else ""
    return head, said + (f"; dropped: {some_of(dropped)}" if dropped else "")


def _positions(names: Sequence[str]) -> dict[str, int]:
    """Where each name stands; one that occurs twice stands for nothing."""
    counts = Counter(names)
    return {name: index for index, name in enumerate(names) if counts[name] == 1}


def some_of(names: Sequence[str], most: int = 3) -> str:
    """The first `most` names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def initialise(
    network: Network, arrays: Mapping[str, np.ndarray], *, source: str, head: Mapping[str, Any] | None = None
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Puts `arrays` into a network.

    Args:
      network: its shapes and dtypes are used.
      arrays: parameters and batch statistics together.
      source: where they come from, for the message.
      head: the arrays of a new head, which takes the place of theirs, whatever its shape; None to take theirs over.

    Returns:
      params and batch statistics.

    Raises:
      UserError: keys, shapes or dtypes are not those of the network, or the head is to be kept and there is none.
    """
    keep_head = head is None
    if keep_head and not any(map(network.is_head, arrays)):
        raise UserError(
            f"the weights of {source} have no head, so they name no classes; "
            f"fine-tune them first, with --config.init={source}"
        )
    wanted, given = (
        {key: leaf for key, leaf in part.items() if keep_head or not network.is_head(key)}
        for part in (network.params | network.batch_stats, arrays)
    )
    problems = mismatches(_described(given), _described(wanted))
    if problems:
        raise UserError("\n  ".join([f"the weights of {source} do not fit the network:", *first_few(problems)]))
    merged = {**given, **(head or {})}
    return {key: merged[key] for key in network.params}, {key: merged[key] for key in network.batch_stats}


def mismatches(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """What must change for `found` to equal `wanted`, a line a key; values as "float32[64, 3, 7, 7]".

    The first `FEW` missing keys come with the unknown one that is most like them.
    """
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    near = {key: difflib.get_close_matches(key, unknown, n=1, cutoff=0.8) for key in missing[:FEW]}
    return [
        *(f"{key} is missing" + "".join(f" ({other} is there)" for other in near.get(key, ())) for key in missing),
        *(f"{key} is unknown" for key in unknown),
        *(
            f"{key} is {found[key]}, not {wanted[key]}"
            for key in sorted(wanted.keys() & found.keys())
            if found[key] != wanted[key]
        ),
    ]


def first_few(lines: Sequence[str]) -> list[str]:
    """The first `FEW` lines, and how many more there are."""
    left = len(lines) - FEW
    return [*lines[:FEW], *([f"and {left:,} more like these"] if left > 0 else [])]


def _described(arrays: Mapping[str, Any]) -> dict[str, str]:
    return {key: f"{array.dtype}{list(array.shape)}" for key, array in arrays.items()}
