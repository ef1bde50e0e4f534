"""Precomputation over the training data: features for the head, and batch norm's statistics."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sft_jax.data.dataset import ArraySplit, Split
from sft_jax.data.loader import Chunk, Loader, StepsPerCall
from sft_jax.models import Network
from sft_jax.models.layers import KEEP_STATISTICS
from sft_jax.tasks.base import Batch, Preprocess
from sft_jax.training.evaluator import PerExample, map_split
from sft_jax.training.experiment import Experiment
from sft_jax.training.state import Arrays
from sft_jax.training.steps import rows_of


def features(
    network: Network,
    params: Mapping[str, jax.Array],
    batch_stats: Mapping[str, jax.Array],
    loader: Loader,
    views: Sequence[Preprocess],
    batch_size: int,
) -> np.ndarray:
    """Computes the head's inputs for all examples of the split of `loader`, in order, in each of the `views`.

    Returns:
      float32 [n, views, channels].
    """

    def outputs(params, batch_stats, batch: Batch) -> jax.Array:
        seen = (view(batch) for view in views)
        inputs = ([each[name] for name in network.inputs] for each in seen)
        return jnp.stack([network.features(params, batch_stats, *each).astype(jnp.float32) for each in inputs], 1)

    return PerExample(outputs, batch_size)(params, batch_stats, loader)


def feature_loaders(
    experiment: Experiment, params: Mapping[str, jax.Array], batch_stats: Mapping[str, jax.Array]
) -> tuple[Loader, Loader]:
    """Computes the features of the training split, also of its mirror images if `data.flip` is set, and of the
    validation split.
    """
    config, loaders = experiment.config, []
    mirrored = experiment.task.views(config.data, config.data.size, crops=1, flips=config.data.flip)
    for loader, views in ((experiment.train_loader, mirrored), (experiment.validation_loader, [experiment.preprocess])):
        table = features(experiment.network, params, batch_stats, loader, views, config.batch_size)
        split = ArraySplit({"feature": table}, dict(loader.split.targets))
        loaders.append(experiment.loader(split))
    train, validation = loaders
    return train, validation


def solved_head(experiment: Experiment, train: Split, validation: Split) -> Arrays:
    """Returns the head's arrays in closed form, from splits of features; an empty dict if the task has no solution."""
    assert isinstance(train, ArraySplit)
    assert isinstance(validation, ArraySplit)
    chosen_on = None
    if not experiment.scored_on_validation:
        chosen_on = validation.inputs["feature"][:, 0], validation.targets
    solution = experiment.task.closed_form_head(train.inputs["feature"], train.targets, chosen_on)
    if solution is None:
        return {}
    head = experiment.network.architecture.head
    return {f"{head}.{leaf}": jnp.asarray(array) for leaf, array in zip(("kernel", "bias"), solution, strict=True)}


def pick_view(batch: Batch, key: jax.Array, first: jax.Array | int, total: int) -> Batch:
    """Picks a random view of each example: "feature" [n, views, channels] -> [n, channels].

    See `data.augment` for `key`, `first` and `total`.
    """
    views = batch["feature"]
    draws = jax.random.randint(jax.random.fold_in(key, 0), (total,), 0, views.shape[1])
    own = lax.dynamic_slice_in_dim(draws, first, len(views))
    return {**batch, "feature": jnp.take_along_axis(views, own[:, None, None], axis=1)[:, 0]}


def first_view(batch: Batch) -> Batch:
    """Picks the first view of each example, which is not mirrored."""
    return {**batch, "feature": batch["feature"][:, 0]}


def recalibrate_batch_norm(
    network: Network,
    params: Mapping[str, jax.Array],
    batch_stats: Mapping[str, jax.Array],
    loader: Loader,
    preprocess: Preprocess,
    order: np.ndarray,
) -> dict[str, jax.Array]:
    """Re-estimates batch norm's statistics: their mean over the batches of `order` [steps, batch].

    Adapting them to new images is AdaBN (Li et al., 2016, arXiv:1603.04779). The mean over batches works better than a
    running mean (Wu and Johnson, 2021, arXiv:2105.07576).
    """

    def program(params, sums, chunk: Chunk):
        def body(index, sums):
            batch = preprocess(rows_of(chunk, index))
            inputs = (batch[name] for name in network.inputs)
            # Starting from zero, one update gives (1 - KEEP_STATISTICS) times the batch statistics.
            _, new = network.apply(params, jax.tree.map(jnp.zeros_like, sums), *inputs, train=True)
            return {key: sums[key] + new[key] / (1 - KEEP_STATISTICS) for key in sums}

        return lax.fori_loop(chunk.start, chunk.stop, body, sums)

    compiled = loader.compile(program, chunk_at=2, arguments=3)
    sums = jax.tree.map(jnp.zeros_like, dict(batch_stats))

    def add(chunk: Chunk) -> dict[str, jax.Array]:
        # The sums are carried from call to call, so that the division into calls makes no difference.
        nonlocal sums
        sums = compiled(params, sums, chunk)
        return sums

    for _ in map_split(add, loader, order, steps_per_call=StepsPerCall()):
        pass
    return {key: total / len(order) for key, total in sums.items()}
