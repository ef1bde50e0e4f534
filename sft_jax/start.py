"""What training starts from: converted weights, an earlier run, or random weights."""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from sft_jax import data
from sft_jax.errors import UserError
from sft_jax.models import Functional, initial_arrays
from sft_jax.report.console import Console
from sft_jax.runs import load_run_weights
from sft_jax.state import Arrays
from sft_jax.weights import Weights, check_stem, inherited_head, initialise, load_weights


def load_init(config: ConfigDict) -> Weights | None:
    """What `config.init` names: a converted file, the best checkpoint of a run, or nothing (scratch)."""
    if config.init == "scratch":
        return None
    path = Path(config.init)
    if not path.suffix and not path.exists():
        raise UserError(
            f"init={config.init}: there is no such run yet; train it first, with --workdir {path} "
            f"(configs/digits.py needs: python -m sft_jax.main --config configs/digits.py:source)"
        )
    found = load_run_weights(path) if path.is_dir() else load_weights(path)
    if found.arch != config.model.name:
        raise UserError(
            f"init={config.init} holds a {found.arch}, but model.name={config.model.name}; "
            f"use --config.model.name={found.arch}"
        )
    return found


def read_dataset(config: ConfigDict, console: Console, *, once: bool = False) -> data.Dataset:
    """What `config.data` names, less what the limits leave out, see `data.load_dataset`. Raises UserError where it
    cannot be read.
    """
    with console.status(f"reading {config.data.source}"):
        return data.load_dataset(
            config.data,
            seed=config.seed,
            limit_train=config.limit_train_examples,
            limit_eval=config.limit_eval_examples,
            once=once,
        )


def initial_weights(
    config: ConfigDict, build: Callable, network: Functional, init: Weights | None, class_names: tuple[str, ...]
) -> tuple[Arrays, Arrays, str]:
    """The parameters and batch statistics before the first step, and in words where they come from.

    With `init` the weights are its own, and so are the rows of the head whose classes have the same name among
    `class_names`; the other rows are drawn with `config.seed`. Without it all weights are random.

    Raises:
      UserError: `init` does not fit the network.
    """
    if init is None:
        return *initial_arrays(build, config.seed), "random weights"
    check_stem(init, config.model.stem, source=config.init)
    head, _ = initial_arrays(build, config.seed, prefix="fc.")
    own, said = inherited_head(init, class_names, head)
    params, batch_stats = initialise(
        network.params | head, network.batch_stats, init.arrays | own, source=config.init, keep_head=bool(own)
    )
    return params, batch_stats, f"weights of {config.init}{said}"
