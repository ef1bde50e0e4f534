"""Writes the features of images and texts to a file: `python -m sft_jax.embed`."""
