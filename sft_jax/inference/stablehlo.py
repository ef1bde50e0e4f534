"""Exports of a network as one file that runs without this package: a jax.export program including its weights.

The file begins with the program as serialised by jax.export (StableHLO) and ends with a zip archive whose only entry,
metadata.json, contains the class names and the preprocessing. Readers of each part ignore the other:

    jax.export.deserialize(bytearray(Path("classifier.stablehlo").read_bytes())).call(inputs)
    unzip -p classifier.stablehlo metadata.json

It contains no pickle.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from sft_jax.errors import UserError

SUFFIXES = (".stablehlo", ".jax")
FORMAT = "sft-jax export 1"
PLATFORMS = ("cpu", "cuda", "tpu")
METADATA = "metadata.json"


def image_inputs(size: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Returns the inputs of a network of images: float32 [batch, size, size, 3], for any batch size."""
    (batch,) = export.symbolic_shape("batch")
    return (jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32),)


def text_inputs(longest: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Returns the inputs of a network of texts: tokens int32, segments uint8 [batch, length], any up to `longest`."""
    shape = export.symbolic_shape("batch, length", constraints=[f"length <= {longest}"])
    return jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.uint8)


def save_exported(
    path: Path,
    program: Callable[..., jax.Array],
    inputs: tuple[jax.ShapeDtypeStruct, ...],
    metadata: Mapping[str, Any],
) -> None:
    """Writes `program`, `inputs` -> logits [batch, classes].

    Raises:
      OSError: the file cannot be written; a part of it may be left.
    """
    serialized = export.export(jax.jit(program), platforms=PLATFORMS)(*inputs).serialize()
    facts = {"format": FORMAT, "bytes": len(serialized), "sha256": hashlib.sha256(serialized).hexdigest()}
    path.write_bytes(serialized)
    with zipfile.ZipFile(path, "a") as archive:  # appended to a file that is no archive
        archive.writestr(METADATA, json.dumps({**metadata, **facts}, indent=2))


def load_exported(path: Path) -> tuple[Callable[..., jax.Array], dict[str, Any]]:
    """Reads the program and the metadata that were passed to `save_exported`.

    Raises:
      UserError: the file is missing, damaged or of another kind.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            metadata = json.loads(archive.read(METADATA))
        with path.open("rb") as file:
            serialized = bytearray(file.read(metadata["bytes"]))
        version, expected = metadata["format"], metadata["sha256"]
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; create it with: python -m sft_jax.export --workdir RUN --output {path}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not an export of sft-jax, or damaged ({error}); export it again") from None
    if version != FORMAT:
        raise UserError(f"{path} has format {version!r}, but this version of sft-jax reads {FORMAT!r}; export it again")
    if hashlib.sha256(serialized).hexdigest() != expected:
        raise UserError(f"{path} is damaged (its program has changed since it was written); export it again")
    try:
        return export.deserialize(serialized).call, metadata
    except ValueError as error:  # a serialisation version that this jax does not support
        reason = str(error).partition("\n")[0]
        raise UserError(f"jax {jax.__version__} cannot read {path} ({reason}); export it again") from None
