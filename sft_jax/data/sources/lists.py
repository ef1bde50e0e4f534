"""Lists the images of any source whose images are files."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sft_jax.data.sources.folder import list_folder
from sft_jax.data.sources.huggingface.hub import is_of_hub, snapshot
from sft_jax.data.sources.listing import Listing
from sft_jax.data.sources.table import list_table
from sft_jax.errors import UserError


def list_files(
    kind: str,
    named: str,
    config: ConfigDict,
    notices: list[str],
    known: Collection[str] | None = None,
    labelling: str = "class",
    group_key: str | None = None,
) -> Listing:
    """Lists the images of a source of files; for `notices` and `known` see `list_folder`.

    `named` is what follows the colon of `data.source`.

    Raises:
      UserError: the images or labels are missing or invalid, or there are no columns for `group_key`.
    """
    if kind == "folder":
        if group_key is not None:
            raise UserError(f"--group {group_key} needs a table with such a column, data.source=csv:FILE")
        return list_folder(Path(named), notices, known)
    keys = {name: config[name] for name in ("image_key", "label_key")}
    settings: dict[str, Any] = {**keys, "group_key": group_key, "known": known, "labelling": labelling}
    if kind == "csv":
        return list_table(Path(named), notices, part_key=config.part_key, **settings)
    # Imports pyarrow, which takes half a second, and only runs on such sets need it.
    from sft_jax.data.sources.huggingface.source import list_huggingface

    return list_huggingface(_place(named, config), notices, **settings)


def huggingface_images(named: str, config: ConfigDict, notices: list[str]) -> list[Path]:
    """Returns the image files of an "hf" source, which need no labels. Arguments and errors as for `list_files`."""
    from sft_jax.data.sources.huggingface.source import image_files

    return image_files(_place(named, config), config.image_key, notices)


def _place(named: str, config: ConfigDict) -> Path:
    return snapshot(named, download=config.download) if is_of_hub(named) else Path(named)
