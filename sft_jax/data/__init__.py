"""Labelled images: sources, sampling order, and augmentation and preprocessing on the device."""

from sft_jax.data.augment import make_augment, make_preprocess, of_image
from sft_jax.data.dataset import Dataset
from sft_jax.data.sources.listing import Record
from sft_jax.data.sources.load import check_source, load_dataset

__all__ = ["Dataset", "Record", "check_source", "load_dataset", "make_augment", "make_preprocess", "of_image"]
