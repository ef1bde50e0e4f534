"""Labelled images: sources, sampling order, and augmentation and preprocessing on the device."""

from sft_jax.data.augment import make_augment
from sft_jax.data.crops import PLACES, views
from sft_jax.data.dataset import Dataset
from sft_jax.data.pixels import make_preprocess, mirrored, of_image
from sft_jax.data.sources.known import check_source
from sft_jax.data.sources.listing import Record
from sft_jax.data.sources.load import load_dataset

__all__ = [
    "PLACES",
    "Dataset",
    "Record",
    "check_source",
    "load_dataset",
    "make_augment",
    "make_preprocess",
    "mirrored",
    "of_image",
    "views",
]
