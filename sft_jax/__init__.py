"""Supervised fine-tuning of pretrained image classifiers in JAX."""

__version__ = "0.1.0"
