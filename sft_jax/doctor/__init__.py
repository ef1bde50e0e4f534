"""Checks of this machine and of the cost of a recipe on it: `python -m sft_jax.doctor`."""
