"""Finds faults of a data set: wrong labels, copies, leaks, outliers, bad pictures: `python -m sft_jax.inspect`."""
