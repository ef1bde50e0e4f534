"""Writes Parquet files of images with the schema and metadata that `datasets` 5.2.0 gives them."""

import io
import json

import pyarrow
import pyarrow.parquet
from image_folders import noise_image

NAMES = ("cat", "dog", "ant")  # not in alphabetical order
CLASS = {"names": list(NAMES), "_type": "ClassLabel"}
# Kind of labels -> name and Arrow type of the column, its description, and the label of the image with a seed.
KINDS = {
    "class": ("label", pyarrow.int64(), CLASS, lambda seed: seed % 3),
    "classes": (
        "labels",
        pyarrow.list_(pyarrow.int64()),
        {"feature": CLASS, "_type": "List"},
        lambda seed: [place for place in range(3) if seed >> place & 1],
    ),
    "number": ("age", pyarrow.float32(), {"dtype": "float32", "_type": "Value"}, lambda seed: seed / 8),
}
STRUCT = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
SPLITS = {"train": (30, 0, 2), "validation": (9, 100, 1), "test": (9, 200, 1)}


def encoded(seed, size=(12, 10)):
    content = io.BytesIO()
    noise_image(seed, *size).save(content, "PNG")
    return content.getvalue()


def write(path, seeds, kind="class", *, described=True, extra=None, images=None, labels=None, **options):
    """Writes a row for each of `seeds`.

    `extra` is further columns; `images` and `labels` replace those of the seeds.
    """
    name, arrow, feature, label = KINDS[kind]
    images = images or [{"bytes": encoded(seed), "path": None} for seed in seeds]
    columns = {
        "image": pyarrow.array(images, STRUCT),
        name: pyarrow.array(labels or [label(seed) for seed in seeds], arrow),
        **{key: pyarrow.array(values) for key, values in (extra or {}).items()},
    }
    table = pyarrow.table(columns)
    if described:
        info = {"info": {"features": {"image": {"_type": "Image"}, name: feature}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=7, **options)


def repository(root, kind="class", splits=SPLITS):
    """Writes a set in several shards, laid out as `push_to_hub` does; returns its folder."""
    for split, (count, first, shards) in splits.items():
        for number in range(shards):
            seeds = range(first + number * count // shards, first + (number + 1) * count // shards)
            write(root / "data" / f"{split}-{number:05}-of-{shards:05}.parquet", seeds, kind)
    return root
