"""Parquet files with a column of images, as `datasets` writes them and as the hub holds them."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pyarrow.types as types

from sft_jax.data.images.files import is_ignored
from sft_jax.data.sources.huggingface.metadata import NAMES
from sft_jax.data.sources.huggingface.splits import split_files
from sft_jax.data.sources.huggingface.table import CLASS, CLASSES, NUMBER, TEXT, TEXTS, WHOLE, Feature, Table
from sft_jax.data.sources.huggingface.unpacking import Shard, reading, unpacked
from sft_jax.data.sources.listing import some
from sft_jax.errors import UserError

SUFFIX = ".parquet"


def parquet_files(root: Path) -> list[str]:
    """Returns the Parquet files in and below a folder, relative to it, sorted. Raises OSError."""
    paths = (path.relative_to(root) for path in root.rglob(f"*{SUFFIX}") if path.name not in NAMES and path.is_file())
    return sorted(path.as_posix() for path in paths if not any(map(is_ignored, path.parts)))


def read_parquet(place: Path, image_key: str | None, notices: list[str]) -> Table:
    """Reads the Parquet files in and below a folder, or a single one; only the images of its `files` are unpacked.

    Raises:
      UserError: a file is not valid, has no images, or has other columns than the others.
    """
    splits: dict[str, str | None]
    if place.is_file():
        root, splits = place.parent, {place.name: None}
    else:
        root, splits = place, split_files(place, parquet_files(place), notices)
    if not splits:
        raise UserError(f"{place} has no Parquet files of a split for training, validation or test")
    schemas = {file: _schema(root / file) for file in splits}
    first, schema = next(iter(schemas.items()))
    for file, other in schemas.items():
        if not other.equals(schema):
            raise UserError(
                f"{root / first} and {root / file} have different columns, so that they are no parts of one set; name "
                f"one of them, or the folder of one set: hf:PATH"
            )
    declared = declared_in(schema)
    image = _image_column(place, schema, declared, image_key)
    shards = [Shard(root / file, part, _rows_of(root / file)) for file, part in splits.items()]
    features = {name: _feature(schema.field(name).type, declared.get(name)) for name in schema.names if name != image}
    return Table(
        place=place,
        features=features,
        parts=[shard.part for shard in shards for _ in range(shard.rows)],
        values=lambda column: [value for shard in shards for value in _column(shard.path, column)],
        files=lambda: unpacked(place, shards, image, notices),
    )


def _schema(path: Path) -> pyarrow.Schema:
    with reading(path):
        return pyarrow.parquet.read_schema(path)


def _rows_of(path: Path) -> int:
    with reading(path):
        return pyarrow.parquet.read_metadata(path).num_rows


def _column(path: Path, column: str) -> list[Any]:
    with reading(path):
        return pyarrow.parquet.read_table(path, columns=[column], page_checksum_verification=True).column(0).to_pylist()


def declared_in(schema: pyarrow.Schema) -> dict[str, Any]:
    """Returns the features that `datasets` described in the schema's metadata, by name; empty if it did not."""
    try:
        contents = json.loads((schema.metadata or {})[b"huggingface"])
        return dict(contents["info"]["features"])
    except (KeyError, ValueError, TypeError):
        return {}


def _image_column(place: Path, schema: pyarrow.Schema, declared: dict[str, Any], image_key: str | None) -> str:
    columns = ", ".join(schema.names)
    if image_key is not None:
        if image_key not in schema.names or not _holds_bytes(schema.field(image_key).type):
            raise UserError(f"{place} has no column {image_key!r} of images (columns: {columns})")
        return image_key
    images = [
        name for name, feature in declared.items() if isinstance(feature, dict) and feature.get("_type") == "Image"
    ]
    images = [name for name in images if name in schema.names]
    images = images or [name for name in schema.names if _holds_bytes(schema.field(name).type)]
    if not images:
        raise UserError(f"{place} has no column of images, which hold their bytes (columns: {columns})")
    if len(images) > 1 and "image" not in images:
        raise UserError(
            f"{place} has several columns of images, {some(images)}; name one with --config.data.image_key={images[0]}"
        )
    return "image" if "image" in images else images[0]


def _holds_bytes(kind: pyarrow.DataType) -> bool:
    """Returns whether a column holds encoded images: bytes, or a struct of bytes and a path."""
    if types.is_struct(kind):
        return any(
            kind.field(place).name == "bytes" and _holds_bytes(kind.field(place).type)
            for place in range(kind.num_fields)
        )
    return types.is_binary(kind) or types.is_large_binary(kind)


def _feature(kind: pyarrow.DataType, declared: Any) -> Feature:
    # Lists are [feature], or {"_type": "Sequence" or "List" or "LargeList", "feature": feature}.
    inner = declared[0] if isinstance(declared, list) and declared else None
    if isinstance(declared, dict):
        inner = declared.get("feature")
    if types.is_list(kind) or types.is_large_list(kind):
        item = _feature(kind.value_type, inner)
        return Feature({CLASS: CLASSES, TEXT: TEXTS, WHOLE: TEXTS}.get(item.kind or ""), item.names)
    if isinstance(declared, dict) and declared.get("_type") == "ClassLabel":
        names = declared.get("names")
        return Feature(CLASS, tuple(map(str, names))) if names else Feature(WHOLE)
    if types.is_dictionary(kind):
        return _feature(kind.value_type, None)
    if types.is_string(kind) or types.is_large_string(kind):
        return Feature(TEXT)
    if types.is_integer(kind) or types.is_boolean(kind):
        return Feature(WHOLE)
    return Feature(NUMBER if types.is_floating(kind) else None)
