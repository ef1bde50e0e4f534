"""Converted weights: reads and writes safetensors files, and checks them key by key before use."""

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
from sft_jax.models import Network, find
from sft_jax.runtime.files import digest, write_bytes

FORMAT = "sft-jax 1"
# Maximum number of mismatches that an error message lists.
FEW = 5


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters and batch statistics of a trained network.

    Attributes:
      arrays: float32, under the keys of `sft_jax.models.Network`.
      arch: name of the network, see `models.find`.
      class_names: classes of the head's outputs, None if unknown.
      metadata: origin of the weights; `convert/resnet_to_flax.py` lists its keys.
    """

    arrays: dict[str, np.ndarray]
    arch: str
    class_names: tuple[str, ...] | None
    metadata: dict[str, str]

    @property
    def stem(self) -> str:
        """The `model.stem` of the network; inferred from the shapes if it was not recorded."""
        if "stem" in self.metadata:
            return self.metadata["stem"]
        known = find(self.arch)
        return "imagenet" if known is None else known.stem_of(self.arrays)

    @property
    def task(self) -> str:
        """What the network learnt, as `config.task`; if it was not recorded, to classify what it takes."""
        known = find(self.arch)
        of_texts = known is not None and known.texts is not None
        return self.metadata.get("task", "text" if of_texts else "classification")

    @property
    def learnt(self) -> dict[str, Any]:
        """What predictions need besides the weights, see `Task.released`."""
        return json.loads(self.metadata.get("learnt", "{}"))

    @property
    def tokenizer(self) -> str | None:
        """The tokenizer of texts, as JSON: that of the reference, or that a run was trained with; None of images."""
        return self.learnt.get("tokenizer", self.metadata.get("tokenizer"))

    @property
    def outputs(self) -> int | None:
        """Number of outputs of the head; None if there is no head."""
        known = find(self.arch)
        bias = self.arrays.get(f"{known.last}.bias") if known is not None else None
        return None if bias is None else bias.shape[0]


def save_weights(path: Path, weights: Weights) -> None:
    """Writes a `.safetensors` file atomically. Raises UserError if it cannot be written."""
    facts = {"format": FORMAT, "arch": weights.arch, "class_names": json.dumps(weights.class_names)}
    arrays = {key: np.ascontiguousarray(array) for key, array in weights.arrays.items()}
    metadata = weights.metadata | facts
    metadata["digest"] = digest(arrays, metadata)
    # save_file would create a file that only its owner can read.
    write_bytes(path, safetensors.numpy.save(arrays, metadata=metadata))


def load_weights(path: Path) -> Weights:
    """Reads a file written by `save_weights`. Raises UserError if it is missing, damaged or of another kind."""
    target = path.with_suffix(".safetensors")
    if not path.is_file():
        raise UserError(
            f"no weights at {path}; create them with: {CONVERTER} --output {target} "
            f"(with --arch NAME for networks other than resnet18)"
        )
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path} is not a .safetensors file; convert it with: {CONVERTER} --state-dict {path} --output {target}"
        )
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            facts = file.metadata() or {}
            keys = set(file.keys())
            arrays = {key: file.get_tensor(key) for key in keys} if facts.get("format") == FORMAT else {}
    except (safetensors.SafetensorError, OSError, TypeError) as error:  # TypeError: numpy has no bfloat16
        raise _damaged(path, str(error)) from None
    version = facts.get("format", "")
    if version.startswith(FORMAT.split()[0]) and version != FORMAT:
        raise UserError(
            f"{path} has format {version!r}, but this version of sft-jax reads {FORMAT!r}; convert it again"
        )
    if version != FORMAT:
        kind = "has torch's keys" if "conv1.weight" in keys else "is not a converted file"
        raise UserError(
            f"{path} {kind}; convert it with: "
            f"{CONVERTER} --state-dict {path} --output {path.with_suffix('.flax.safetensors')}"
        )
    # Early files of this format have no digest.
    expected = facts.pop("digest", None)
    if expected is not None and digest(arrays, facts) != expected:
        raise _damaged(path, "its contents have changed since it was written")
    try:
        arch, names = facts["arch"], json.loads(facts["class_names"])
        class_names = None if names is None else tuple(map(str, names))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"invalid metadata: {error!r}") from None
    bad = [key for key, array in sorted(arrays.items()) if not np.isfinite(array).all()]
    if bad:
        raise UserError(
            f"{path} contains NaN or infinite values in {', '.join(bad)}; use a checkpoint from before it diverged"
        )
    return Weights(arrays, arch, class_names, facts)


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged ({reason}); create it again with: {CONVERTER} --output {path}")


def inherited_head(
    weights: Weights, names: tuple[str, ...], fresh: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], str]:
    """Builds the head for the classes `names` from the head of `weights`.

    If the classes are the same, the whole head is reused. Otherwise the rows of classes with exactly the same name are
    reused and the other rows are taken from `fresh`.

    Args:
      weights: the weights to reuse.
      names: class names of the new head.
      fresh: a newly initialised head: kernel [in, classes] and bias [classes].

    Returns:
      the head's arrays, empty if nothing is reused, and a description of what was reused, to end a sentence.
    """
    old = weights.class_names or ()
    given = {key: array for key, array in weights.arrays.items() if key in fresh}
    fits = {key: array.shape for key, array in given.items()} == {key: leaf.shape for key, leaf in fresh.items()}
    if fits and old == names:
        return given, " with its head"
    there, here = _positions(old), _positions(names)
    shared = here.keys() & there.keys()
    old_shapes = {key: (*leaf.shape[:-1], len(old)) for key, leaf in fresh.items()}
    if not shared or {key: array.shape for key, array in given.items()} != old_shapes:
        return {}, " with a new head"
    head = {key: np.array(leaf) for key, leaf in fresh.items()}
    for key, array in head.items():
        array[..., [here[name] for name in shared]] = given[key][..., [there[name] for name in shared]]
    new, dropped = ([name for name in some if name not in shared] for some in (names, old))
    description = f"; head: {len(shared)} of {len(names)} classes reused"
    description += f", new: {some_of(new)}" if new else ""
    return head, description + (f"; dropped: {some_of(dropped)}" if dropped else "")


def _positions(names: Sequence[str]) -> dict[str, int]:
    """Maps each name to its position; names that occur more than once are omitted."""
    counts = Counter(names)
    return {name: index for index, name in enumerate(names) if counts[name] == 1}


def some_of(names: Sequence[str], most: int = 3) -> str:
    """Lists the first `most` names and the number of others."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def initialise(
    network: Network, arrays: Mapping[str, np.ndarray], *, source: str, head: Mapping[str, Any] | None = None
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Checks `arrays` against a network and splits them into parameters and batch statistics.

    Args:
      network: defines the shapes and dtypes.
      arrays: parameters and batch statistics together.
      source: origin of the arrays, for messages.
      head: arrays of a new head that replaces the one in `arrays`, of any shape; None to keep that one.

    Returns:
      parameters and batch statistics.

    Raises:
      UserError: keys, shapes or dtypes differ from the network's, or the head is to be kept but missing.
    """
    keep_head = head is None
    if keep_head and not any(map(network.is_head, arrays)):
        raise headless(source)
    wanted, given = (
        {key: leaf for key, leaf in part.items() if keep_head or not network.is_head(key)}
        for part in (network.params | network.batch_stats, arrays)
    )
    problems = mismatches(_described(given), _described(wanted))
    if problems:
        raise UserError("\n  ".join([f"the weights of {source} do not fit the network:", *first_few(problems)]))
    merged = {**given, **(head or {})}
    return {key: merged[key] for key in network.params}, {key: merged[key] for key in network.batch_stats}


def headless(source: str) -> UserError:
    """Returns the error of asking for the outputs of weights without a head."""
    return UserError(
        f"the weights of {source} have no head and therefore no classes; "
        f"fine-tune them first, with --config.init={source}"
    )


def mismatches(actual: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Lists the differences of `actual` from `wanted`, one line per key; values are e.g. "float32[64, 3, 7, 7]".

    The first `FEW` missing keys are listed with the most similar unknown key.
    """
    missing, unknown = sorted(wanted.keys() - actual.keys()), sorted(actual.keys() - wanted.keys())
    near = {key: difflib.get_close_matches(key, unknown, n=1, cutoff=0.8) for key in missing[:FEW]}
    return [
        *(f"{key} is missing" + "".join(f" (similar: {other})" for other in near.get(key, ())) for key in missing),
        *(f"{key} is unknown" for key in unknown),
        *(
            f"{key} is {actual[key]}, not {wanted[key]}"
            for key in sorted(wanted.keys() & actual.keys())
            if actual[key] != wanted[key]
        ),
    ]


def first_few(lines: Sequence[str]) -> list[str]:
    """Returns the first `FEW` lines and a line with the number of others."""
    left = len(lines) - FEW
    return [*lines[:FEW], *([f"and {left:,} more"] if left > 0 else [])]


def _described(arrays: Mapping[str, Any]) -> dict[str, str]:
    return {key: f"{array.dtype}{list(array.shape)}" for key, array in arrays.items()}
