"""Ours and PyTorch's training of the same network, side by side: `python -m sft_jax.benchmark`."""
