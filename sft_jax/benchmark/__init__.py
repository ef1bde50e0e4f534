"""Benchmark of sft-jax against PyTorch on the same network: `python -m sft_jax.benchmark`."""
