"""Common names of dataset splits, in folders and in table columns."""

import re

from sft_jax.errors import UserError

PARTS = ("train", "val", "test")
# The key under `data` of each.
KEYS = {"train": "train", "val": "validation", "test": "test"}
# As in torchvision, timm, fastai (valid), Roboflow (valid), Kaggle (Training, seg_test) and Hugging Face (dev).
_ALIASES = {
    "train": {"train", "training", "trn"},
    "val": {"val", "valid", "validation", "dev", "devel", "development", "eval", "evaluation"},
    "test": {"test", "testing", "tests", "tst"},
}
_FILLERS = {"set", "data", "dataset", "split", "part", "images", "image", "imgs", "img", "seg"}


def part_of(name: str) -> str | None:
    """Returns the split ("train", "val" or "test") that a name such as "Training" or "test_set" means, or None.

    Case is ignored, and so is a trailing year as in "train2017".
    """
    words = re.split(r"[\W_]+", name.casefold())
    stems = [re.sub(r"(?<=.)(set|data|(19|20)\d\d)$", "", word) for word in words if word and word not in _FILLERS]
    if len(stems) != 1:
        return None
    return next((part for part, aliases in _ALIASES.items() if stems[0] in aliases), None)


def named_part(split: str) -> str:
    """Returns the split that the flag --split names, see `part_of`. Raises UserError if it is none."""
    part = part_of(split)
    if part is None:
        raise UserError(f"--split {split!r} must be train, validation or test for this source")
    return part
