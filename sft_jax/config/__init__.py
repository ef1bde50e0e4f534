"""What a recipe may say: its keys and their rules, and how a recipe is read."""

from sft_jax.config.recipe import check_argument, complete, default_config, flatten, load_config

__all__ = ["check_argument", "complete", "default_config", "flatten", "load_config"]
