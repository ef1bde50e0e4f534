"""All labelled texts of a source, for evaluating a network that was trained on others, and for features."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sft_jax.data.dataset import Batch
from sft_jax.data.sources.everything import matched, of_split, of_tfds
from sft_jax.data.sources.known import check_kind, kind_of
from sft_jax.data.sources.labelling import LABELLINGS
from sft_jax.data.sources.texts.columns import Keys
from sft_jax.data.sources.texts.examples import Examples
from sft_jax.data.sources.texts.files import list_texts
from sft_jax.data.sources.texts.prepared import list_prepared
from sft_jax.data.texts.reading import Text


def all_texts(
    config: ConfigDict,
    split: str | None,
    notices: list[str],
    *,
    known: Sequence[str] | None = None,
    labelling: str = "class",
    group: str | None = None,
) -> Examples:
    """Collects the texts of `config.data.source`, from all splits unless `split` names one.

    Args:
      config: the whole configuration.
      split: the only split to use; None for all.
      notices: receives a line about anything that is skipped or guessed.
      known, labelling: see `list_texts`.
      group: the column that says what a text belongs to, e.g. an author.

    Raises:
      UserError: there are no texts, or their columns or labels are missing or invalid.
    """
    check_kind(config.data, of_texts=True)
    kind, rest = kind_of(config.data)
    keys = Keys.of(config.data, config.text.columns)._replace(group=group)
    settings: dict[str, Any] = {"keys": keys, "known": known, "labelling": labelling}
    if kind == "tfds":
        where = {"directory": config.data.dir, "download": config.data.download}
        whole = of_tfds(rest, split, notices, **where)
        return list_prepared(rest, {"test": whole}, notices, **settings, **where)
    listed = list_texts(Path(rest), notices, **settings)
    return dataclasses.replace(listed, all=of_split(rest, listed.all, split, notices, "text"))


def labelled_texts(
    config: ConfigDict, class_names: Sequence[str], split: str | None, notices: list[str], labelling: str
) -> tuple[list[Text], Batch]:
    """Returns all texts, see `all_texts`, and their targets by name, of which classes are indices in `class_names`.

    Raises:
      UserError: as there, or the network, whose classes are `class_names`, does not have those of the texts.
    """
    found = all_texts(config, split, notices, known=class_names, labelling=labelling)
    labels = [each.label for each in found.all]
    if labelling == "class":
        names = [str(label) for label in dict.fromkeys(labels)]
        matched(config.data.source, names, class_names, notices, "text")
    return [each.text for each in found.all], LABELLINGS[labelling].targets(labels, class_names)
