"""What this machine has, what it lacks, and what a recipe would cost on it: `python -m sft_jax.doctor`."""
