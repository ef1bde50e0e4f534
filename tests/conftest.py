"""Strict settings for every test: 8 virtual CPU devices, no silent rank or dtype promotion."""

import os

# Before jax is imported: the number of CPU devices is fixed when its backend starts.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# No test reads or leaves anything in the user's cache folder.
os.environ["SFT_JAX_CACHE"] = "0"

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
