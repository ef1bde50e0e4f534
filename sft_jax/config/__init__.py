"""The configuration: keys, their constraints, and reading of recipes."""

from sft_jax.config.recipe import check_argument, complete, default_config, flatten, load_config

__all__ = ["check_argument", "complete", "default_config", "flatten", "load_config"]
