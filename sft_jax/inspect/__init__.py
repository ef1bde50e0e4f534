"""Finds wrong labels, copies, leaks, outliers and poor images or texts of a data set: `python -m sft_jax.inspect`."""
