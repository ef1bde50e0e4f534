"""Labelled images: where they come from, in which order they are seen, and what is done to them on the device."""

from sft_jax.data.augment import make_augment, make_preprocess
from sft_jax.data.listing import Record
from sft_jax.data.sources import check_source, load_dataset
from sft_jax.data.types import Dataset

__all__ = ["Dataset", "Record", "check_source", "load_dataset", "make_augment", "make_preprocess"]
