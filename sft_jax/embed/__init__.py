"""Writes the features of images to a file: `python -m sft_jax.embed`."""
