"""Stops a run whose loss or weights are no longer finite, before they are saved."""

import jax
import numpy as np

from sft_jax.errors import DivergedError
from sft_jax.run.folder import Run
from sft_jax.training.state import TrainState


def check_losses(losses: np.ndarray, *, first: int, epoch: int, run: Run) -> None:
    """Raises DivergedError if a loss of `losses` [steps], which start at step `first` of `epoch`, is not finite."""
    bad = np.flatnonzero(~np.isfinite(losses))
    if len(bad):
        raise _diverged(f"the loss is {losses[bad[0]]} at step {first + int(bad[0])} (epoch {epoch})", run)


def check_state(state: TrainState, *, epoch: int, run: Run) -> None:
    """Raises DivergedError if weights are not finite because the last update, in `epoch`, overflowed."""
    weights_of = {**state.params, **state.batch_stats}
    bad = [key for key, leaf in jax.device_get(weights_of).items() if not np.isfinite(leaf).all()]
    if bad:
        raise _diverged(f"{bad[0]} is not finite after step {int(state.step)} (epoch {epoch})", run)


def _diverged(what: str, run: Run) -> DivergedError:
    return DivergedError(
        f"{what}; earlier checkpoints are in {run.folder / 'checkpoints'}; "
        f"try a lower --config.optimizer.learning_rate with a new --workdir"
    )
