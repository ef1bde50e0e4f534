"""Lists the labelled texts of a dataset of tensorflow_datasets."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.data.sources.part_names import KEYS
from sft_jax.data.sources.texts.columns import Keys
from sft_jax.data.sources.texts.examples import Examples, examples_of, of_sheets
from sft_jax.data.sources.texts.sheet import Sheet
from sft_jax.data.sources.tfds import prepared
from sft_jax.data.sources.tfds_prepared import Prepared
from sft_jax.errors import UserError


def list_prepared(
    name: str,
    splits: Mapping[str, str],
    notices: list[str],
    keys: Keys,
    *,
    directory: str | None,
    download: bool,
    known: Collection[str] | None = None,
    labelling: str = "class",
) -> Examples:
    """Lists the texts of some splits of the dataset `name`, whose classes are those that it declares.

    Args:
      name: e.g. "glue/sst2".
      splits: "train", "val" or "test" -> a split expression in the syntax of tfds.
      notices, keys, known, labelling: see `list_texts`; columns are the features.
      directory, download: see `load_tfds`.

    Raises:
      UserError: the dataset or a split is unknown or cannot be obtained, has no labelled texts, or its features or
        labels do not fit.
    """
    builder, told = prepared(name, directory=directory, download=download)
    notices += told
    data = _Texts(builder, name)
    place = Path(f"tfds:{name}")
    sheets = ((data.sheet(place, part, split), part) for part, split in splits.items())
    found = of_sheets(place, sheets, keys._replace(part=None), labelling, notices)
    for part, split in splits.items():
        if not any(each.part == part for each in found.examples):
            raise UserError(f"data.{KEYS[part]}={split} has no labels (all are -1); {data.others(KEYS[part])}")
    return examples_of(place, found, notices, known=known, labelling=labelling)


class _Texts(Prepared):
    """The records of a dataset as rows of texts, classes and numbers."""

    def sheet(self, place: Path, part: str, split: str) -> Sheet:
        """Reads a split. Raises UserError if it is empty, damaged, or the dataset has no texts."""
        import tensorflow_datasets as tfds

        # Sorted, because those that are read from a prepared set come in any order.
        features = dict(sorted((self._builder.info.features or {}).items()))
        texts = [key for key in features if isinstance(features[key], tfds.features.Text)]
        classes = {
            key: tuple(features[key].names) for key in features if type(features[key]) is tfds.features.ClassLabel
        }
        numbers = [key for key in features if key not in classes and _is_number(features[key])]
        if not texts:
            raise UserError(f"tfds:{self._name} has no texts; its features are {', '.join(features) or 'unknown'}")
        self.count(KEYS[part], split)
        names = [key for key in features if key in texts or key in classes or key in numbers]
        with self.reading(split):
            rows: list[list[str | None]] = [[_cell(record[key]) for key in names] for record in self.records(split)]
        return Sheet(place / split, names, rows, list(range(1, len(rows) + 1)), classes)


def _is_number(feature: Any) -> bool:
    return feature.shape == () and np.issubdtype(feature.np_dtype, np.number)


def _cell(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
