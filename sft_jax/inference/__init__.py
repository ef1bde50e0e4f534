"""Inference with trained networks."""
